from .accelerated import (
    AcceleratedViT as AcceleratedViT,
    Explanation as Explanation,
    check_accelerated_folder as check_accelerated_folder,
)
from .adapters import AdaptedGuide as AdaptedGuide, StudentGuide as StudentGuide
from .attention import (
    AttentionNotRecorded as AttentionNotRecorded,
    AttentionPass as AttentionPass,
    AttentionRecord as AttentionRecord,
    attention_of as attention_of,
    check_block as check_block,
    fused_attention as fused_attention,
    record_attention as record_attention,
)
from .baselines import (
    ActivationGuide as ActivationGuide,
    CenterGuide as CenterGuide,
    ClassAttentionGuide as ClassAttentionGuide,
    EarlyGuide as EarlyGuide,
    NormChangeGuide as NormChangeGuide,
    RandomGuide as RandomGuide,
)
from .explainers import (
    FlowGuide as FlowGuide,
    GradientAttentionGuide as GradientAttentionGuide,
    GradientRolloutGuide as GradientRolloutGuide,
    HeadGuide as HeadGuide,
    LastAttentionGuide as LastAttentionGuide,
    ModelGuide as ModelGuide,
    RolloutGuide as RolloutGuide,
    check_category as check_category,
)
from .factory import (
    Guide as Guide,
    load_choosers as load_choosers,
    make_choosers as make_choosers,
    make_guide as make_guide,
    models_in as models_in,
    picture_guide as picture_guide,
)
from .flow import attention_flow as attention_flow, flow_graph as flow_graph, with_residual as with_residual
from .legacy import (
    LegacyGradientRolloutGuide as LegacyGradientRolloutGuide,
    LegacyRolloutGuide as LegacyRolloutGuide,
    legacy_gradient_rollout as legacy_gradient_rollout,
    legacy_rollout as legacy_rollout,
)
from .rollout import (
    attention_relevance as attention_relevance,
    attention_rollout as attention_rollout,
    check_discard as check_discard,
    discard_lowest as discard_lowest,
    fuse_gradient as fuse_gradient,
    fuse_heads as fuse_heads,
    fuse_positive_gradient as fuse_positive_gradient,
    last_attention as last_attention,
    propagate as propagate,
    readout_row as readout_row,
    settle_zeros as settle_zeros,
)
