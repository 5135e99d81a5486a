from .acceleration import (
    accelerate as accelerate,
    accelerated_accuracy as accelerated_accuracy,
    accelerated_cost as accelerated_cost,
    all_reductions as all_reductions,
    choose_reduction as choose_reduction,
    count_reductions as count_reductions,
    model_card as model_card,
    near_speed as near_speed,
    operating_points as operating_points,
)
from .evaluation import answer as answer, drop_curve as drop_curve
from .frontier import (
    MERGING as MERGING,
    RIVALS as RIVALS,
    SMALLER as SMALLER,
    SPEEDS as SPEEDS,
    UNGUIDED as UNGUIDED,
    Frontier as Frontier,
    Point as Point,
    candidate_points as candidate_points,
    frontier_points as frontier_points,
    kept_points as kept_points,
    measure_frontier as measure_frontier,
    measured_speedups as measured_speedups,
    ways_of as ways_of,
)
from .journal import Journal as Journal, Row as Row, journal_file as journal_file
from .outcomes import (
    LEVERS as LEVERS,
    NOT_USED as NOT_USED,
    SUMMARY_COLUMNS as SUMMARY_COLUMNS,
    Outcomes as Outcomes,
    paired_difference as paired_difference,
    read_outcomes as read_outcomes,
    recovered_share as recovered_share,
    save_outcomes as save_outcomes,
    student_shares as student_shares,
    summarize as summarize,
    with_levers as with_levers,
)
from .question import Question as Question
from .results import (
    DIFFERENCE as DIFFERENCE,
    add_results as add_results,
    check_same as check_same,
    identity_table as identity_table,
    read_results as read_results,
    results_file as results_file,
    results_table as results_table,
    row_checksums as row_checksums,
    save_results as save_results,
    table_for as table_for,
)
from .scale import cheap_images as cheap_images, cheap_target as cheap_target, real_size_cost as real_size_cost
from .schedule import Part as Part, Schedule as Schedule
