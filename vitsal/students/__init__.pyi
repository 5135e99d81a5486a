from .checkpoints import Checkpoints as Checkpoints, check_training_folder as check_training_folder
from .distillation import (
    DivergedError as DivergedError,
    accelerator_for as accelerator_for,
    cosine_schedule as cosine_schedule,
    describe_training as describe_training,
    distill as distill,
    teach as teach,
    training_folder as training_folder,
)
from .fidelity import (
    as_distribution as as_distribution,
    divergence as divergence,
    kept_overlap as kept_overlap,
    measure_fidelity as measure_fidelity,
    rank_correlation as rank_correlation,
)
from .losses import (
    LOSS_FUNCTIONS as LOSS_FUNCTIONS,
    bce_loss as bce_loss,
    kl_loss as kl_loss,
    mse_loss as mse_loss,
    rank_loss as rank_loss,
)
from .maps import (
    CachedMaps as CachedMaps,
    Claim as Claim,
    MapSettings as MapSettings,
    Shard as Shard,
    Teacher as Teacher,
    cache_maps as cache_maps,
    describe_maps as describe_maps,
    maps_folder as maps_folder,
    read_settings as read_settings,
    write_shard as write_shard,
)
from .networks import (
    Blind as Blind,
    ConvNet as ConvNet,
    ResidualBlock as ResidualBlock,
    TimmNet as TimmNet,
    Transformer as Transformer,
    check_known as check_known,
    make_backbone as make_backbone,
    make_network as make_network,
)
from .student import (
    Student as Student,
    load_student as load_student,
    load_students as load_students,
    new_student as new_student,
    save_student as save_student,
    write_student as write_student,
)
from .views import jitter_colours as jitter_colours, random_views as random_views, warp as warp
