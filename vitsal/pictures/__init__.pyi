from .charts import (
    LiveCurve as LiveCurve,
    draw_frontier as draw_frontier,
    draw_fronts as draw_fronts,
    label_drop_axis as label_drop_axis,
    plot_accuracy_against_throughput as plot_accuracy_against_throughput,
    plot_attention_distances as plot_attention_distances,
    plot_drop_curves as plot_drop_curves,
    plot_frontier as plot_frontier,
    plot_intervals as plot_intervals,
    plot_learning_curves as plot_learning_curves,
    plot_probes as plot_probes,
    plot_published as plot_published,
    plot_speedups as plot_speedups,
    share_legend as share_legend,
    use_slide_style as use_slide_style,
)
from .drawings import draw_rollout as draw_rollout, draw_short_way as draw_short_way
from .explorer import Explorer as Explorer, load_named as load_named
from .explorer_figure import (
    add_canvas as add_canvas,
    download_links as download_links,
    draw_exploration as draw_exploration,
    place_picture as place_picture,
    place_predictions as place_predictions,
)
from .overlays import (
    HEAT_MAP as HEAT_MAP,
    Column as Column,
    draw_frames as draw_frames,
    hide_dropped as hide_dropped,
    overlay as overlay,
    paint_coarse as paint_coarse,
    paint_groups as paint_groups,
    resized as resized,
    scale_map as scale_map,
    tile_pictures as tile_pictures,
    whole_frame_transform as whole_frame_transform,
)
from .sheets import (
    add_colour_bar as add_colour_bar,
    columns_that_fill as columns_that_fill,
    contact_sheet as contact_sheet,
    draw_filters as draw_filters,
    draw_positions as draw_positions,
    draw_sample as draw_sample,
    explain_pictures as explain_pictures,
    fit_text as fit_text,
    picture_size as picture_size,
    show_picture as show_picture,
    show_pictures as show_pictures,
    write_titles as write_titles,
)
from .style import (
    COLOURS as COLOURS,
    MARKERS as MARKERS,
    SLIDE as SLIDE,
    curve_style as curve_style,
    figure_bytes as figure_bytes,
    save_figure as save_figure,
    set_slide_style as set_slide_style,
    shorten as shorten,
)
from .video import draw_on_video as draw_on_video
from .video_files import (
    ENCODER as ENCODER,
    Film as Film,
    assemble as assemble,
    check_sound as check_sound,
    cut_film as cut_film,
    encode as encode,
    inspect_video as inspect_video,
    is_gif as is_gif,
    pictures_of as pictures_of,
    read_frames as read_frames,
    to_array as to_array,
    write_film as write_film,
    write_gif as write_gif,
)
