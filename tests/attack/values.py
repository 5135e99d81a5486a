"""Bad values for every option of every command: one option at a time goes wrong in a command line that is fine.

`BASE` holds the fine command lines; their files are made by `workplace.furnish`. `BAD` holds a list for each option, or
a sentence that says why no value of it is bad. A value is a word, a tuple of words for an argument that takes several,
or a dictionary of several options, where one alone is not wrong.
"""

MODEL = "vitsal_digits_guide"
LONG, DIGITS, NUL, BYTES = "x" * 10_000, "9" * 400, "a\0b", "caf\udce9"
ODD = ["", NUL, BYTES, LONG, "a\nb"]  # no name of anything
NO_NUMBER = ["", "x", "1e20", DIGITS, "99999999999999999999"]
WHOLE = [*NO_NUMBER, "1.5", "-1"]
COUNT = [*WHOLE, "0"]
INDEX = [*WHOLE, "10", "999999"]  # the model has ten classes
SEED = [*NO_NUMBER, "1.5", "18446744073709551616", "-18446744073709551616"]
WIDTH = [*COUNT, "1", "9223372036854775807"]
SHARE = ["", "x", "nan", "inf", "-inf", "1", "1.1", "-0.1", "1e400", "0,5", DIGITS]
RATE = ["", "x", "nan", "inf", "-inf", "0", "-1", "1e400", DIGITS]
FUSION = [*ODD, "Mean", "meann", "mean,max", "median"]
DEVICE = [*ODD, "gpu", "cuda:99", "cuda:-1", "tpu", "meta", "cpu,cpu", "7"]
KEEP = ["", ",", "x", "0", "-0.5", "1.5", "nan", "inf", "0.5,,0.2", "0.5;0.2", "{[]:1}", "[0.5]", "True", "None", "1j",
        "1e400", DIGITS, NUL, "(" * 300, "-" * 100_000 + "1", "9" * 5_000, "'0.5'"]  # fmt: skip
MODELS = [
    *ODD,
    " ",
    "{[]:1}",
    "vit",
    "resnet18",
    "foo:bar",
    "hf-hub:",
    "local-dir:",
    "vit_small_r26_s32_224",
    f"{MODEL}.none",
    ".",
]
SEVERAL_MODELS = [*MODELS, ",", f"{MODEL},", f"{MODEL},vit"]
SIZE = ["", "x", "0", "-8", "100", "112,", "112,0", "112,112,112", "1e3", "112.0", "\u00b2", DIGITS, "9" * 5_000]
MERGE = ["", "x", "-1", "1.5", "8@", "8@9", "8@-1", "--", "16-8", "1 2", "0 0 0 0", "[8]", ",", "8,", NUL, DIGITS]
MERGE += ["c", "8 c"]
SOFTEN = ["", ",", "x", "nan", "inf", "-inf", "-1", "10", "1e400", "1e-", "1,x", "1--", "[1]", "True", NUL, DIGITS]
REST = [*ODD, ",", "coarse,", "Coarse", "dropped,coarsely", "0", {"rest": "coarse", "input_size": "104"}]  # 13 x 13
INPUT = ["", "x", "0", "-8", "100", "112,", "112x", "x112", "112x0", "1e3", "112.0", DIGITS, "99999992"]
SPLIT = [*ODD, "trian", "Train", "0", "train[:10]", "train,test"]
CHECKPOINT = ["", NUL, LONG, "none.safetensors", "photo.png", "photos", "notes.txt", "empty.safetensors",
              "cut.safetensors", "other.safetensors", "int8.safetensors", "bool.safetensors", "nan.safetensors",
              "code.pth", "loop.pth"]  # fmt: skip
DATA = [*ODD, "none", "Digits", "digits ", "photo.png", "photos", "notes.txt", "empty", "cut.tar", "hfds/", "hfids/",
        "hfds/none", "wds/", "wds/none.tar", "wds/cut.tar", "wds/pipe:true", "wds/pipe:touch marker.tar", "tfds/mnist",
        "loop"]  # fmt: skip
FILE = [NUL, f"{LONG}.png", "photo.png/new.png", "/proc/new.png", "loop/new.png"]  # for an output
FOLDER = [NUL, LONG, "photo.png", "photo.png/new", "/proc/new", "loop"]
STUDENT = ["", NUL, LONG, "none", "photo.png", "photos", "empty", "hf-hub:none", "..", "loop", "foo/bar/baz"]
METHOD = [*ODD, "rolout", "Rollout", "random", "student", "center", "class-attention"]
NETWORK = [*ODD, " ", "vit", "resnet", MODEL, "swin_tiny_patch4_window7_224", "foo:bar", "hf-hub:", "local-dir:", ".",
           "resnet18.none", "resnet18"]  # fmt: skip
GUIDE = [*ODD, ",", "rolout", "rollout,", "random,,center", "Random", "student", "any", "activation", "norm-change"]
ARCHITECTURE = [*ODD, "convnett", "Convnet", "hf-hub:none", "foo:bar", ".", "resnet18.none"]

# what only the work itself can find, when it has begun to write
LATE = {"nan.safetensors", "/proc/new", "/proc/t.parquet"}

BASE = {
    "": {},
    "explain": {"image": "photo.png", "model": MODEL, "output": "new/picture.png"},
    "video": {"source": "film.mp4", "output": "new/film.mp4", "model": MODEL},
    "probe": {"data": "digits", "model": MODEL, "limit": "2", "output": "new/probe"},
    "drop-curve": {"data": "digits", "target": MODEL, "limit": "2", "keep": "0.5", "output": "new/table.csv"},
    "train-student": {
        "teacher": MODEL, "data": "digits", "limit": "20", "maps": "new/maps", "width": "4", "epochs": "1",
        "batch_size": "8", "output": "new/student",
    },
    "teach-student": {
        "student": "digits-convnet-rollout", "target": MODEL, "data": "digits", "limit": "10", "epochs": "1",
        "batch_size": "2", "output": "new/taught",
    },
    "tune-target": {
        "target": MODEL, "data": "digits", "limit": "10", "steps": "1", "batch_size": "2", "output": "new/tuned",
    },
    "accelerate": {
        "target": MODEL, "speed_up": "1.5", "data": "digits", "limit": "2", "output": "new/fast", "batch_size": "2",
    },
    "frontier": {
        "target": MODEL, "data": "digits", "test_data": "digits", "output": "new/front", "guide": "random",
        "speeds": "1.5", "limit": "2", "test_limit": "2", "batch_size": "2",
    },
    "run": {"arguments": ("1",), "notebooks": "notebooks", "output": "new/run"},
    "recipes": {"name": "large16"},
    "benchmark": {"what": "rollout", "model": MODEL, "batch_size": "1", "repeats": "1"},
    "benchmark-data": {"samples": "3", "output": "new/benchmark"},
}  # fmt: skip

BAD = {
    "": {},
    "explain": {
        "image": [*ODD[1:], "none.png", "notes.txt", "empty", "loop", "fifo", "photo.png/x", "dangling.png", "cut.png"],
        "model": MODELS,
        "checkpoint": CHECKPOINT,
        "method": [*METHOD, ",", "rollout,", "rollout,rolout"],
        "head_fusion": FUSION,
        "discard_ratio": SHARE,
        "category_index": INDEX,
        "image_size": [*SIZE, "99999992"],
        "limit": COUNT,
        "device": DEVICE,
        "output": ["", *FILE, "photo.png", "./photos/../photo.png", "link.png", "photos", "new", "new.doc", ".png",
                   "folder.png", {"image": "photos", "output": "photos/a.png"}],
    },
    "video": {
        "source": [*ODD, "none.mp4", "photos", "notes.txt", "cut.mp4", "loop", "fifo", "dangling.png"],
        "output": ["", NUL, f"{LONG}.mp4", "photo.png/new.mp4", "/proc/new.mp4", "film.mp4", "photos/../film.mp4",
                   "new", "new.avi", "photos", "folder.mp4", ".mp4"],
        "model": SEVERAL_MODELS,
        "method": METHOD,
        "head_fusion": FUSION,
        "discard_ratio": SHARE,
        "category_index": INDEX,
        "image_size": [*SIZE, "99999992"],
        "width": WIDTH,
        "batch_size": [*COUNT, "129"],
        "device": DEVICE,
    },
    "probe": {
        "data": DATA,
        "model": SEVERAL_MODELS,
        "split": SPLIT,
        "limit": COUNT,
        "batch_size": COUNT,
        "num_workers": WHOLE,
        "device": DEVICE,
        "output": FOLDER,
    },
    "drop-curve": {
        "data": [*DATA, "words"],
        "target": MODELS,
        "guide": GUIDE,
        "guide_model": MODELS,
        "student": [{"guide": "student", "student": name} for name in STUDENT] + ["digits-convnet-rollout"],
        "head_fusion": [*FUSION, {"guide": "random", "head_fusion": "max"}],
        "discard_ratio": [*SHARE, {"guide": "center", "discard_ratio": "0.5"}],
        "category_index": [*INDEX, {"guide": "random", "category_index": "3"}],
        "block": ["0", *({"guide": "norm-change", "block": block} for block in [*SEED, "3", "-4", "1001"])],
        "network": ["test_resnet", *({"guide": "activation", "network": name} for name in NETWORK)],
        "keep": KEEP,
        "checkpoint": CHECKPOINT,
        "guide_checkpoint": CHECKPOINT,
        "split": SPLIT,
        "limit": COUNT,
        "batch_size": COUNT,
        "num_workers": WHOLE,
        "device": DEVICE,
        "seed": [{"guide": "random", "seed": seed} for seed in SEED],
        "strict": ["maybe", "1", ""],
        "output": ["", NUL, f"{LONG}.csv", "photo.png/t.csv", "/proc/t.csv", "loop/t.csv", "table.txt", "new", "photos",
                   "folder.csv", "notes.csv", "photo.png"],
        "image_size": SIZE,
        "merge": MERGE,
        "input_size": INPUT,
        "soften": SOFTEN,
        "rest": REST,
        "outcomes": ["", NUL, f"{LONG}.parquet", "photo.png/t.parquet", "/proc/t.parquet", "loop/t.parquet", "photos",
                     "notes.csv", "photo.png"],
    },
    "train-student": {
        "teacher": MODELS,
        "data": DATA,
        "output": FOLDER,
        "method": [*ODD, "rolout", "random", "flow", "heads", "rollout,grad-rollout"],
        "head_fusion": FUSION,
        "discard_ratio": SHARE,
        "category_index": [{"method": "grad-rollout", "category_index": index} for index in INDEX],
        "checkpoint": CHECKPOINT,
        "split": SPLIT,
        "limit": COUNT,
        "maps": [*FOLDER, "damaged-maps"],
        "views": WHOLE,
        "geometry": ["maybe", "1", ""],
        "architecture": ARCHITECTURE,
        "pretrained": ["maybe", "1", "", None],  # None: as a flag alone, which a convnet cannot take
        "width": [*COUNT, "3", "99999999999", {"architecture": "transformer", "width": "5"}],
        "cell": [*COUNT, "100000000"],
        "loss": [*ODD, "kll", "KL", "kl,mse", "l1"],
        "epochs": COUNT,
        "batch_size": COUNT,
        "learning_rate": RATE,
        "accumulate": [*COUNT, "7"],
        "patience": COUNT,
        "num_workers": WHOLE,
        "seed": SEED,
    },
    "teach-student": {
        "student": STUDENT,
        "target": MODELS,
        "data": DATA,
        "output": FOLDER,
        "head_fusion": FUSION,
        "discard_ratio": SHARE,
        "checkpoint": CHECKPOINT,
        "split": SPLIT,
        "limit": [*COUNT, "1"],
        "epochs": COUNT,
        "batch_size": COUNT,
        "learning_rate": RATE,
        "keep": [*KEEP, "0.5", "0.6,0.5", "0.1,0.2,0.3"],
        "soften": SOFTEN,
        "num_workers": WHOLE,
        "seed": SEED,
    },
    "tune-target": {
        "target": MODELS,
        "data": DATA,
        "output": FOLDER,
        "guide": GUIDE,
        "student": [{"guide": "student", "student": name} for name in STUDENT] + ["digits-convnet-rollout"],
        "head_fusion": [*FUSION, {"guide": "random", "head_fusion": "max"}],
        "discard_ratio": [*SHARE, {"guide": "center", "discard_ratio": "0.5"}],
        "network": ["test_resnet", *({"guide": "activation", "network": name} for name in NETWORK)],
        "checkpoint": CHECKPOINT,
        "split": SPLIT,
        "limit": [*COUNT, "1"],
        "steps": COUNT,
        "batch_size": COUNT,
        "learning_rate": RATE,
        "whole": ["", "x", "nan", "inf", "-inf", "-1", "1e400", DIGITS],
        "parameters": [*ODD, ",", "nrom", "head.*", "*norm*,nrom", "*norm*,"],
        "keep": [*KEEP, "0.5", "0.6,0.5", "0.1,0.2,0.3"],
        "merge": MERGE,
        "input_size": INPUT,
        "soften": SOFTEN,
        "rest": REST[:-1],  # lessons are on the target's own grid
        "shares": ["", ",", "x", "1", "1,1", "0,0,0", "1,1,-1", "1,1,nan", "1,1,inf", "1,1,1,1", DIGITS, "True,1,1"],
        "num_workers": WHOLE,
        "seed": SEED,
    },
    "accelerate": {
        "target": MODELS,
        "speed_up": ["", "x", "nan", "inf", "-inf", "0", "1", "-2", "0.5", "100", "1e400", DIGITS, "1,5"],
        "data": DATA,
        "output": FOLDER,
        "student": STUDENT,
        "checkpoint": CHECKPOINT,
        "split": SPLIT,
        "limit": [*COUNT, "1"],
        "test_data": [*DATA, "words"],
        "test_split": [{"test_data": "digits", "test_split": split} for split in SPLIT],
        "test_limit": [{"test_data": "digits", "test_limit": count} for count in COUNT],
        "batch_size": COUNT,
        "num_workers": WHOLE,
        "device": DEVICE,
    },
    "frontier": {
        "target": MODELS,
        "data": DATA,
        "test_data": [*DATA, "words"],
        "output": FOLDER,
        "guide": [*ODD, ",", "rolout", "rollout,", "random,,center", "Random", "student", "any"],
        "student": [{"guide": "student", "student": name} for name in STUDENT] + ["digits-convnet-rollout"],
        "network": ["test_resnet", *({"guide": "activation", "network": name} for name in NETWORK)],
        "block": ["0", *({"guide": "norm-change", "block": block} for block in [*SEED, "3", "-4", "1001"])],
        "head_fusion": [*FUSION, {"guide": "random", "head_fusion": "max"}],
        "discard_ratio": [*SHARE, {"guide": "center", "discard_ratio": "0.5"}],
        "checkpoint": CHECKPOINT,
        "soften": SOFTEN,
        "speeds": ["", ",", "x", "nan", "inf", "-inf", "0", "1", "-2", "100", "1e400", DIGITS, "2,x", "2,1", "[2]"],
        "split": SPLIT,
        "limit": [*COUNT, "1"],
        "test_split": [*SPLIT, "train"],
        "test_limit": COUNT,
        "batch_size": COUNT,
        "num_workers": WHOLE,
        "device": DEVICE,
    },
    "run": {
        "arguments": [("x",), ("99",), ("0",), ("-p",), ("-p", "a"), ("1", "-p", "none", "1"), ("1", "-p"), ("-1",),
                      ("\u00b2",), ("9" * 5_000,), ("1.5",), ("",), (NUL,), (BYTES,), ("1", "-p", "", "")],
        "notebooks": [NUL, LONG, "none", "empty", "photos", "photo.png", "loop", "broken"],
        "output": FOLDER,
    },
    "recipes": {
        "name": [" ", NUL, BYTES, LONG, "Large16", "none", "large16,large16", "1"],
        "students": [NUL, "photo.png"],
        "device": [{"name": "", "device": device} for device in DEVICE],
    },
    "benchmark": {
        "what": [*ODD, " ", "Rollout", "speed", "rollout,student"],
        "model": [name for name in MODELS if name],
        "student": [{"what": "student", "student": name} for name in STUDENT],
        "batch_size": COUNT,
        "keep": [{"what": "dropping", "keep": keep} for keep in KEEP],
        "merge": [{"what": "dropping", "merge": merge} for merge in MERGE],
        "input_size": [{"what": "dropping", "input_size": size} for size in INPUT],
        "precision": [{"what": "dropping", "precision": precision} for precision in
                      [*ODD, "float", "int8", "float16", "bf16", "Float32", "float64"]],
        "repeats": COUNT,
        "device": DEVICE,
    },
    "benchmark-data": {
        "samples": [*COUNT, ",", "5,", "5,x", "5 6", "[5]", "True", "None", "-5", "5,0", "9" * 5_000],
        "output": FOLDER,
    },
}  # fmt: skip
