"""The explorer: a page of controls in front of `vitsal.analysis.exploration`, for notebooks and for Voilà."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import timm
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from vitsal.analysis.exploration import Exploration
from vitsal.choices import METHODS
from vitsal.data.uploads import read_upload
from vitsal.errors import UserError, quoted, suggestion
from vitsal.guides.adapters import StudentGuide
from vitsal.guides.explainers import HeadGuide, ModelGuide
from vitsal.guides.factory import Guide, make_guide
from vitsal.guides.rollout import HEAD_FUSIONS
from vitsal.models.loading import load_model
from vitsal.pictures.explorer_figure import download_links, draw_exploration, figure_bytes
from vitsal.students.student import Student

ONE_HEAD = "one head"
MOST_UPLOADS, MOST_MODELS = 20, 4  # kept beside those given at the start: a page may be open for long, and to many
TIMM_MODULES = ("vision_transformer", "deit", "beit", "eva")  # where timm keeps the ViTs that can be explored


class Explorer(widgets.VBox):
    """Choose or upload a picture, choose a ViT and a method; see the map, the kept patches, the target's top 5.

    Attention is recorded once for each picture and model, and each map is computed once, so that controls answer at
    once; flow takes seconds, then. Beside a method's map a student's prediction can be shown.

    Args:
        models: name -> timm ViT in eval mode; others are loaded when their timm names are typed, and the newest kept.
        pictures: name -> picture, RGB (`vitsal.data.open_pictures`).
        students: name -> student (`vitsal.students.load_students`).

    Example:
        >>> Explorer({"deit": load_model("deit_tiny_patch16_224")}, {"cat": picture})  # doctest: +SKIP
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        pictures: Mapping[str, Image.Image],
        students: Mapping[str, Student] | None = None,
    ) -> None:
        self._models, self._pictures, self._students = dict(models), dict(pictures), dict(students or {})
        self._given = {*models, *pictures}
        self._exploration: tuple[tuple[str, str], Exploration] | None = None
        self._held = False
        self._make_controls()
        self.message = widgets.HTML().add_class("vitsal-message")
        self.links = widgets.HTML()
        self.picture = widgets.Image(format="jpeg", layout=widgets.Layout(width="100%", max_width="960px"))
        rows = [
            [self.image, self.upload, self.model, self.student],
            [self.method, self.category, self.head_fusion, self.discard_ratio, self.block, self.head],
            [self.drop_ratio, self.save, self.links],
        ]
        boxes = [widgets.HBox(row, layout=widgets.Layout(flex_flow="row wrap")) for row in rows]
        super().__init__([*boxes, self.message, self.picture])
        self._watch()
        self.update()

    def _make_controls(self) -> None:
        vits = [name for module in TIMM_MODULES for name in timm.list_models(module=module, pretrained=True)]
        students = [("none", None), *self._students.items()]
        self.image = widgets.Dropdown(options=list(self._pictures), description="image")
        self.upload = widgets.FileUpload(accept="image/*")
        self.model = widgets.Combobox(
            value=next(iter(self._models)),
            options=[*self._models, *vits],
            description="model",
            placeholder="any timm ViT",
            continuous_update=False,
        )
        self.method = widgets.Dropdown(options=[*METHODS, ONE_HEAD], description="method")
        self.category = widgets.Dropdown(description="class")
        self.head_fusion = widgets.Dropdown(options=list(HEAD_FUSIONS), value="max", description="fusion")
        self.discard_ratio = _slider(0.9, 0.98, "discard")
        self.block = widgets.IntSlider(1, 1, 1, description="block", continuous_update=False)
        self.head = widgets.IntSlider(1, 1, 1, description="head", continuous_update=False)
        self.student = widgets.Dropdown(options=students, index=0, description="student")
        self.drop_ratio = _slider(0.5, 0.95, "drop")
        self.save = widgets.Button(description="Save picture")

    def _watch(self) -> None:
        own = {name: getattr(self, name) for name in ("head_fusion", "discard_ratio", "block", "head")}
        self._by_field = {"category_index": self.category, **own}
        for control in (self.image, self.method, self.student, self.drop_ratio, *self._by_field.values()):
            control.observe(lambda change: self._answer(self.update), names="value")
        self.model.observe(lambda change: self._answer(self._change_model, change.old), names="value")
        self.upload.observe(lambda change: self._answer(self._take_upload), names="value")
        self.save.on_click(lambda button: self._answer(self._offer_files))

    def _answer(self, action: Callable[..., None], *args: str) -> None:
        """Do what a control asks for; where that cannot be done, say why, and stay as alive as before."""
        if self._held:
            return
        try:
            action(*args)
        except UserError as error:
            self.say(str(error))
        except Exception as error:  # a page has no place for a traceback, and a silent control looks dead
            self.say(f"This did not work: {type(error).__name__}: {error}")
            raise

    @contextmanager
    def _hold(self) -> Iterator[None]:
        """Change controls without an answer to each."""
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before

    def say(self, text: str) -> None:
        """Show a line of plain text under the controls."""
        self.message.value = escape(text)

    def update(self) -> None:
        """Draw the picture that belongs to the controls' values."""
        self.links.value = ""
        slow = self.method.value == "flow"
        self.say("Flow takes seconds: one maximum flow for each patch ..." if slow else "")
        gc.disable()  # a figure is full of cycles: grown old, they make Python search all of torch, for 0.4 s or so
        try:
            # PNG would take longer to pack than all the rest
            self.picture.value = figure_bytes(self.draw(), "jpeg", dpi=72)
        finally:
            gc.enable()
            gc.collect(0)
        if slow:
            self.say("")

    def draw(self) -> Figure:
        """The current picture: image, map and kept patches, the same for the student, with the model's top 5."""
        exploration, guides = self.explore(), self.guides()
        views = {name: exploration.look(guide, self.drop_ratio.value) for name, guide in guides.items()}
        return draw_exploration(exploration, views)

    def explore(self) -> Exploration:
        """The chosen picture in the chosen model; recorded anew only when one of them has changed."""
        key = self.model.value, self.image.value
        if self._exploration is None or self._exploration[0] != key:
            self._exploration = key, Exploration(self._models[key[0]], self._pictures[key[1]])
            self._fit_controls(self._exploration[1])
        return self._exploration[1]

    def guides(self) -> dict[str, Guide]:
        """The chosen method, and the chosen student where there is one: heading -> guide."""
        model = self._models[self.model.value]
        method = self._method_guide(model)
        guides = {self._heading(method): method}
        if self.student.value is not None:
            guides[f"student {self.student.label}"] = StudentGuide(self.student.value, model)
        return guides

    def _heading(self, guide: ModelGuide) -> str:
        """The method, with what the picture would not tell: which class, which head."""
        if isinstance(guide, HeadGuide):
            return f"block {self.block.value}, head {self.head.value}"
        category = getattr(guide, "category_index", None)
        return self.method.value + ("" if category is None else f": {self.explore().names[category]}")

    def _method_guide(self, model: nn.Module) -> ModelGuide:
        """The chosen method with the chosen settings; controls that it does not know are switched off."""
        if self.method.value == ONE_HEAD:
            guide = HeadGuide(model, self.block.value - 1, self.head.value - 1)
        else:
            options = {name: self._by_field[name].value for name in ("category_index", "head_fusion", "discard_ratio")}
            guide = make_guide(self.method.value, model, **options)
        known = {field.name for field in fields(guide)}
        for name, control in self._by_field.items():
            control.disabled = name not in known
        return guide

    def _fit_controls(self, exploration: Exploration) -> None:
        """Offer what this model has: its likeliest classes, its blocks and heads, methods that it allows."""
        gradients = exploration.model.num_classes > 0
        methods = [name for name in (*METHODS, ONE_HEAD) if gradients or not name.startswith("grad")]
        method = self.method.value
        with self._hold():
            self.method.options = methods
            self.method.value = method if method in methods else methods[0]
            self.category.options = [(str(top), top.index) for top in exploration.predictions]
            self.category.index = 0 if exploration.predictions else None
            self.block.max = len(exploration.record.attentions)
            self.head.max = min(attention.shape[1] for attention in exploration.record.attentions)

    def _change_model(self, before: str) -> None:
        """Take the model of the name that was typed, or say why not and go back to the one before."""
        name, known = self.model.value.strip(), set(self._models)
        try:
            if name not in known:
                self.say(f"Loading {name} ...")
                self._models[name] = load_named(name)
            with self._hold():
                self.model.value = name
            self.update()
        except Exception:
            with self._hold():
                self.model.value = before
            if name not in known:
                self._models.pop(name, None)
            raise
        self._make_newest(self._models, name, MOST_MODELS)
        self.say(f"{name}: {len(self._models[name].blocks)} blocks, {self.head.max} heads each.")

    def _take_upload(self) -> None:
        """Add the uploaded picture to the others, and choose it."""
        if not self.upload.value:
            return
        name, content = self.upload.value[0]["name"], bytes(self.upload.value[0]["content"])
        with self._hold():
            self.upload.value = ()  # so that the same file may come again
        self._pictures[name], told = read_upload(content, name)
        self._make_newest(self._pictures, name, MOST_UPLOADS)
        self._exploration = None  # the picture before may have had the same name
        with self._hold():
            self.image.options = list(self._pictures)
            self.image.value = name
        self.update()
        self.say(told)

    def _make_newest(self, kept: dict[str, Any], name: str, most: int) -> None:
        """Move `name` to the end, unless it was given at the start; of what was added since, drop all but `most`."""
        if name not in self._given:
            kept[name] = kept.pop(name)
        for old in [added for added in kept if added not in self._given][:-most]:
            del kept[old]

    def _offer_files(self) -> None:
        """Links that hand the current picture to the browser, as PNG at 200 dpi and as SVG."""
        self.links.value = download_links(self.draw(), f"{Path(self.image.value).stem} {self.method.value}")


def load_named(name: str) -> nn.Module:
    """Load a model by its name in timm, and by nothing else: whoever sees the page may type here.

    Raises:
        UserError: a folder of the server, a repository of the hub, or what `load_model` raises.
    """
    if not timm.is_model(name):
        near = suggestion(name, timm.list_models())
        raise UserError(f"Unknown model {quoted(name)}: timm has none of this name.{near}")
    return load_model(name)


def _slider(value: float, high: float, description: str) -> widgets.FloatSlider:
    return widgets.FloatSlider(value, min=0, max=high, step=0.01, description=description, continuous_update=False)
