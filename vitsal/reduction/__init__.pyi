from .coarse import (
    Coarse as Coarse,
    check_coarse as check_coarse,
    coarsen_patches as coarsen_patches,
    num_cells as num_cells,
    patches_of as patches_of,
    top_k_cells as top_k_cells,
)
from .drop import (
    check_keep as check_keep,
    embed_halved as embed_halved,
    embed_once as embed_once,
    forward_kept as forward_kept,
    gather_tokens as gather_tokens,
    keep_patches as keep_patches,
)
from .keep import (
    can_look as can_look,
    num_kept as num_kept,
    rank_patches as rank_patches,
    shuffle_of as shuffle_of,
    top_k_patches as top_k_patches,
)
from .merge import (
    Merged as Merged,
    class_attention as class_attention,
    match_tokens as match_tokens,
    merge_groups as merge_groups,
    merge_schedule as merge_schedule,
    merge_tokens as merge_tokens,
    num_mergeable as num_mergeable,
    plain_merging as plain_merging,
    spares as spares,
)
from .reduction import (
    Reduction as Reduction,
    Shown as Shown,
    allows as allows,
    as_reduction as as_reduction,
    check_reduction as check_reduction,
    forward_each as forward_each,
    forward_reduced as forward_reduced,
    num_ranked as num_ranked,
    reduced as reduced,
)
from .soften import (
    attention_scale as attention_scale,
    plain_softening as plain_softening,
    query_norms as query_norms,
    read_softening as read_softening,
    soften_attention as soften_attention,
    soften_schedule as soften_schedule,
)
from .surgery import (
    before_blocks as before_blocks,
    before_pooling as before_pooling,
    eval_mode as eval_mode,
    replaced as replaced,
)
