from . import (
    analysis as analysis,
    choices as choices,
    course as course,
    data as data,
    errors as errors,
    experiments as experiments,
    guides as guides,
    jobs as jobs,
    models as models,
    pictures as pictures,
    reduction as reduction,
    students as students,
    tuning as tuning,
)
from .analysis.cost import pipeline_cost as pipeline_cost
from .course.notebooks import save_headlines as save_headlines
from .course.presets import read_parameters as read_parameters
from .data.images import batches as batches
from .data.opening import open_data as open_data, open_pictures as open_pictures
from .experiments.evaluation import drop_curve as drop_curve
from .experiments.outcomes import recovered_share as recovered_share, summarize as summarize
from .experiments.results import save_results as save_results
from .guides.accelerated import AcceleratedViT as AcceleratedViT
from .guides.attention import record_attention as record_attention
from .guides.explainers import GradientRolloutGuide as GradientRolloutGuide, RolloutGuide as RolloutGuide
from .guides.factory import make_guide as make_guide
from .guides.rollout import attention_rollout as attention_rollout
from .jobs.devices import find_device as find_device
from .models.loading import load_model as load_model
from .models.tokens import grid_size as grid_size, model_transform as model_transform
from .pictures.explorer import Explorer as Explorer
from .reduction.drop import forward_kept as forward_kept
from .reduction.keep import top_k_patches as top_k_patches
from .reduction.merge import merge_tokens as merge_tokens
from .reduction.reduction import Reduction as Reduction
from .students.distillation import distill as distill
from .students.maps import cache_maps as cache_maps
from .students.student import load_student as load_student, load_students as load_students, new_student as new_student
from .tuning.tolerance import tune_target as tune_target
