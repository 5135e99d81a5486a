from .cascade import SecondLook as SecondLook, margins as margins, second_look as second_look
from .cost import (
    PLAIN as PLAIN,
    count_operations as count_operations,
    dropping_speedup as dropping_speedup,
    example_images as example_images,
    gflop_per_image as gflop_per_image,
    pipeline_cost as pipeline_cost,
    rollout_cost as rollout_cost,
    run_benchmark as run_benchmark,
    spread_of as spread_of,
    student_cost as student_cost,
    time_alternating as time_alternating,
)
from .exploration import Exploration as Exploration, View as View, map_table as map_table
from .faithfulness import (
    METRICS as METRICS,
    Metric as Metric,
    curve_table as curve_table,
    score_guides as score_guides,
    score_table as score_table,
)
from .intervals import (
    Interval as Interval,
    bootstrap as bootstrap,
    difference as difference,
    mean_interval as mean_interval,
    wilson_interval as wilson_interval,
)
from .localization import mask_energy as mask_energy, pointing_game as pointing_game
from .occlusion import (
    PatchSwitches as PatchSwitches,
    hide_grey as hide_grey,
    hide_smoothly as hide_smoothly,
    switch_off as switch_off,
)
from .probing import (
    Probe as Probe,
    attention_distance as attention_distance,
    attention_distances as attention_distances,
    distance_table as distance_table,
    mean_attention_distance as mean_attention_distance,
    patch_distances as patch_distances,
    position_similarity as position_similarity,
    probe_model as probe_model,
    projection_filters as projection_filters,
)
