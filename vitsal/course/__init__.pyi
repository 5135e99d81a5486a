from .cast import load_targets as load_targets, make_guides as make_guides, outline_of as outline_of
from .measured import MEASURED as MEASURED, measured_file as measured_file
from .notebooks import (
    find_notebooks as find_notebooks,
    read_headlines as read_headlines,
    save_headlines as save_headlines,
)
from .presets import (
    PRESETS as PRESETS,
    Preset as Preset,
    check_parameters as check_parameters,
    choose_preset as choose_preset,
    read_parameters as read_parameters,
)
from .published import (
    PUBLISHED as PUBLISHED,
    compare_with_published as compare_with_published,
    published_curves as published_curves,
)
from .recipes import (
    NUM_IMAGES as NUM_IMAGES,
    RECIPES as RECIPES,
    TARGETS as TARGETS,
    Curve as Curve,
    GuideSpec as GuideSpec,
    ModelSpec as ModelSpec,
    PublishedExperiment as PublishedExperiment,
    choose_recipe as choose_recipe,
    is_student as is_student,
    training_command as training_command,
)
from .requirements import (
    count_recipe as count_recipe,
    describe_recipes as describe_recipes,
    measure_speed as measure_speed,
    needs as needs,
)
from .runs import run_notebooks as run_notebooks
