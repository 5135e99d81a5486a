from .images import (
    Batch as Batch,
    IndexedImages as IndexedImages,
    LabelledImages as LabelledImages,
    NumberedImages as NumberedImages,
    Sample as Sample,
    StreamedImages as StreamedImages,
    batches as batches,
    describe_transform as describe_transform,
    image_loader as image_loader,
    named_batches as named_batches,
)
from .labels import (
    by_name as by_name,
    check_classes as check_classes,
    check_labels as check_labels,
    find_classes as find_classes,
    is_hidden as is_hidden,
)
from .opening import data_dir as data_dir, open_data as open_data, open_pictures as open_pictures
from .pictures import (
    BrokenImage as BrokenImage,
    check_shape as check_shape,
    decode as decode,
    decoding as decoding,
    open_image as open_image,
    open_images as open_images,
    spread as spread,
    to_rgb as to_rgb,
    upright as upright,
    warn_of_skipped as warn_of_skipped,
)
from .places import check_data as check_data
from .scenes import (
    Digit as Digit,
    DigitScenes as DigitScenes,
    Pose as Pose,
    Scene as Scene,
    Sizes as Sizes,
    digit_rows as digit_rows,
    enlarged_digit as enlarged_digit,
    make_scene as make_scene,
    patch_masks as patch_masks,
    photographs as photographs,
)
from .shards import ShardImages as ShardImages, open_shards as open_shards
from .sources import (
    FolderImages as FolderImages,
    HubImages as HubImages,
    Member as Member,
    TarImages as TarImages,
    file_stamp as file_stamp,
    list_folder as list_folder,
    list_tar as list_tar,
    open_archive as open_archive,
)
from .uploads import read_upload as read_upload
