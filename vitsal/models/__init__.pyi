from .classes import (
    Prediction as Prediction,
    check_answering as check_answering,
    class_names as class_names,
    top_classes as top_classes,
)
from .convnets import feature_map as feature_map
from .digits import (
    vitsal_digits_guide as vitsal_digits_guide,
    vitsal_digits_target as vitsal_digits_target,
    vitsal_digits_target_drop as vitsal_digits_target_drop,
)
from .loading import (
    find_weights as find_weights,
    load_model as load_model,
    load_network as load_network,
    load_sized_model as load_sized_model,
    megabytes as megabytes,
    outline as outline,
    weights_dir_file as weights_dir_file,
)
from .pixels import (
    convert_images as convert_images,
    denormalize as denormalize,
    downsample as downsample,
    fit_grid as fit_grid,
    renormalize as renormalize,
    resize as resize,
    to_pixels as to_pixels,
)
from .sizes import (
    check_size as check_size,
    resized as resized,
    resized_each as resized_each,
    whole_grid as whole_grid,
)
from .tokens import (
    default_readout as default_readout,
    grid_size as grid_size,
    input_size as input_size,
    model_transform as model_transform,
    position_kind as position_kind,
    readout_options as readout_options,
)
from .weights import load_state as load_state, options_from as options_from, read_checkpoint as read_checkpoint
