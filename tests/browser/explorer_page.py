"""The explorer as its user meets it: found by its labels, moved by mouse and keyboard, read from the screen."""

import time
from contextlib import contextmanager

METHOD_CONTROLS = {  # what each method knows; the others must be grey
    "rollout": {"fusion", "discard"},
    "grad-rollout": {"class", "discard"},
    "last-attention": set(),
    "grad-attention": {"class"},
    "flow": {"fusion", "discard"},
    "one head": {"block", "head"},
}
ENABLED, GREY = "select:enabled, .noUi-target:not([disabled])", "select:disabled, .noUi-target[disabled]"
DIGEST = """async image => {
    const bytes = await (await fetch(image.src)).arrayBuffer();
    return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).join();
}"""


class ExplorerPage:
    """The one explorer in a page, in JupyterLab as in Voilà."""

    def __init__(self, page):
        self.page = page
        self.picture = page.locator("img.widget-image")
        self.message = page.locator(".vitsal-message")

    def control(self, label):
        """The widget with this label."""
        labelled = self.page.locator(".widget-label").get_by_text(label, exact=True)
        return self.page.locator(".widget-inline-hbox").filter(has=labelled)

    def choose(self, label, option):
        """Choose in a dropdown, by the option's text or its number."""
        how = {"index": option} if isinstance(option, int) else {"label": option}
        self.control(label).locator("select").select_option(**how)

    def move(self, label):
        """Take a dropdown to its next option, a slider to its lower end, or from there to its upper end."""
        select, handle = (self.control(label).locator(part) for part in ("select", ".noUi-handle"))
        if select.count():
            self.choose(label, select.evaluate("select => (select.selectedIndex + 1) % select.length"))
        else:
            at_the_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemin")
            handle.click()  # takes hold of it, after scrolling there
            handle.press("End" if at_the_end else "Home")

    def type_model(self, name):
        """Type a model's name, and Enter."""
        field = self.control("model").locator("input")
        field.fill(name)
        field.press("Enter")

    def upload(self, path):
        """Choose a file to upload."""
        with self.page.expect_file_chooser() as chooser:
            self.page.locator("button.widget-upload").click()
        chooser.value.set_files(path)

    def expect_message(self, text):
        """Wait until the message line holds this text."""
        self.message.filter(has_text=text).wait_for()

    def digest(self):
        """Of the picture's bytes: its address is new even where it shows the same."""
        return self.picture.evaluate(DIGEST)

    @contextmanager
    def new_picture(self, seconds=60):
        """A context after which the picture must become another one."""
        before, deadline = self.digest(), time.monotonic() + seconds
        yield
        while self.digest() == before:
            assert time.monotonic() < deadline, f"the same picture after {seconds} s; {self.message.inner_text()}"
            self.page.wait_for_timeout(50)

    def try_method(self, method):
        """Choose a method; the controls that it knows, and no others, are enabled, and each changes the picture."""
        if self.control("method").locator("option:checked").inner_text() != method:
            with self.new_picture():
                self.choose("method", method)
        known = METHOD_CONTROLS[method]
        for label in set().union(*METHOD_CONTROLS.values()):
            self.control(label).locator(ENABLED if label in known else GREY).wait_for()
        for label in sorted(known):
            with self.new_picture():
                self.move(label)
