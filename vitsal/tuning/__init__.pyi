from .answers import (
    Asked as Asked,
    answer_table as answer_table,
    compare_answers as compare_answers,
    divergence as divergence,
    judge_answers as judge_answers,
    logit_distance as logit_distance,
)
from .lessons import (
    Lesson as Lesson,
    Lessons as Lessons,
    can_soften as can_soften,
    merge_counts as merge_counts,
    noisy_ranking as noisy_ranking,
    smaller_sizes as smaller_sizes,
    softening_of as softening_of,
)
from .mixture import MixedImages as MixedImages
from .parameters import (
    load_difference as load_difference,
    resized_with_gradient as resized_with_gradient,
    save_difference as save_difference,
    tunable_twin as tunable_twin,
    tuned_names as tuned_names,
)
from .pupils import check_taught_folder as check_taught_folder, teach_by_answers as teach_by_answers
from .state import TuningState as TuningState
from .steps import Steps as Steps
from .tolerance import check_tuning_folder as check_tuning_folder, tune_target as tune_target
