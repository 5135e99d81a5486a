from .acceleration import (
    accelerate as accelerate,
    accelerated_accuracy as accelerated_accuracy,
    accelerated_cost as accelerated_cost,
    all_reductions as all_reductions,
    choose_reduction as choose_reduction,
    model_card as model_card,
    operating_points as operating_points,
)
from .evaluation import answer as answer, drop_curve as drop_curve
from .journal import Journal as Journal, Row as Row, journal_file as journal_file
from .measured import read_outcomes as read_outcomes, save_outcomes as save_outcomes
from .outcomes import (
    LEVERS as LEVERS,
    NOT_USED as NOT_USED,
    SUMMARY_COLUMNS as SUMMARY_COLUMNS,
    Outcomes as Outcomes,
    paired_difference as paired_difference,
    recovered_share as recovered_share,
    student_shares as student_shares,
    summarize as summarize,
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
