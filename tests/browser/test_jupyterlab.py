"""Notebook 01 in JupyterLab: every cell runs, and every control of its explorer moves the picture."""

import json

import pytest
from explorer_page import METHOD_CONTROLS, ExplorerPage
from papermill.iorw import load_notebook_node, write_ipynb
from papermill.parameterize import parameterize_notebook

pytestmark = pytest.mark.slow

NOTEBOOK = "01_rollout_exploration.ipynb"
LAB = ["jupyterlab", "--allow-root", "--IdentityProvider.token=", "--ServerApp.root_dir=."]
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},  # or it asks the reader
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight can be read, and keep the focus
}
PROMPTS = ".jp-CodeCell .jp-InputPrompt"
RAN = f"""() => {{  // the first cell has its number, none is waiting: all ran, or one failed and stopped the others
    const prompts = [...document.querySelectorAll("{PROMPTS}")].map(prompt => prompt.textContent);
    return /\\d/.test(prompts[0]) && !prompts.some(prompt => prompt.includes("*"));
}}"""


@pytest.fixture(scope="module")
def lab(page, serve, notebooks, tmp_path_factory):
    """The page after Run All Cells."""
    path = str(notebooks / NOTEBOOK)
    notebook = load_notebook_node(path)
    for cell in notebook.cells:  # as a new reader finds it
        cell.update({"outputs": [], "execution_count": None} if cell.cell_type == "code" else {})
    write_ipynb(parameterize_notebook(notebook, {"limit": 4}), path)
    settings = tmp_path_factory.mktemp("settings")
    for name, values in SETTINGS.items():
        file = settings / f"@jupyterlab/{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    with serve([*LAB, f"--LabApp.user_settings_dir={settings}"], notebooks) as url:
        page.goto(f"{url}/lab/tree/{NOTEBOOK}")
        page.locator(".jp-StatusBar-TextItem").get_by_text("| Idle").wait_for()  # the kernel is there
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.wait_for_function(RAN, timeout=300_000)
        yield page


@pytest.fixture(scope="module")
def explorer(lab):
    return ExplorerPage(lab)


def test_all_cells_run(lab, notebooks):
    assert lab.locator(".jp-OutputArea-output").filter(has_text="Traceback (most").all_text_contents() == []
    count = sum(cell["cell_type"] == "code" for cell in json.loads((notebooks / NOTEBOOK).read_text())["cells"])
    assert lab.locator(PROMPTS).all_text_contents() == [f"[{number}]:" for number in range(1, count + 1)]


@pytest.mark.parametrize("method", METHOD_CONTROLS)
def test_method_and_its_controls(explorer, method):
    explorer.try_method(method)


@pytest.mark.parametrize("label", ["image", "drop", "method"])
def test_control_moves_the_picture(explorer, label):
    with explorer.new_picture():
        explorer.move(label)
