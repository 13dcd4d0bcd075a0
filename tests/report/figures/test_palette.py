import itertools

import pytest
from matplotlib import colormaps

from fisherscope.report.figures import palette


def _luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _contrast(a, b):
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_twelve_tasks_look_different():
    # Catches two tasks with one colour and one line pattern.
    looks = palette.series(str(i) for i in range(12))
    assert len({(look.color, look.dashes) for look in looks.values()}) == 12


def test_a_task_keeps_its_colour_whatever_a_figure_shows(results):
    # Catches colours handed out by a figure's own order of tasks.
    names = palette.task_names(results)
    alone = palette.series(palette.task_names(results, names[2]))
    assert alone[names[2]] == palette.series(names)[names[2]]
    assert palette.task_names(results, "new", names[0])[-1] == "new"


@pytest.mark.parametrize(("mode", "page"), [("light", "#ffffff"), ("dark", "#171c22")])
def test_task_colours_stand_out_from_the_page(mode, page):
    # Catches a faint colour: 2.1 is what Okabe and Ito's lightest hues reach on white.
    declarations = palette.css_variables()[mode].split(";")[:8]
    colors = [declaration.split(":")[1].strip() for declaration in declarations]
    assert len(set(colors)) == 8
    assert min(_contrast(color, page) for color in colors) > 2.1


def test_text_on_every_step_of_the_scale_is_legible():
    # Catches white on yellow or black on violet: 4 to 1 everywhere on the scale.
    for i in range(256):
        fill = palette.sequential(i / 255)
        assert _contrast(fill, palette.text_on(fill)) > 4


def test_sequential_is_viridis_and_clips():
    # Catches a reversed or rescaled map, and an index error outside the scale.
    for position in (0.0, 0.25, 1.0):
        found = palette.sequential(position)
        expected = colormaps["viridis"](position)[:3]
        channels = [int(found[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert channels == pytest.approx(expected, abs=0.005)
    assert palette.sequential(-3) == palette.sequential(0)
    assert palette.sequential(7) == palette.sequential(1)


def test_signed_colours():
    # Catches harm in blue, and colour at zero.
    harm, help_, none = palette.signed(1.0), palette.signed(-1.0), palette.signed(0.0)
    assert harm[0] > harm[2] and help_[2] > help_[0]
    assert none[3] == 0 and palette.signed(0.2)[3] < palette.signed(0.4)[3] < harm[3]


def test_page_colours_are_markers_of_their_own():
    # Catches a marker that is also a step of the scale or another marker, and so recoloured.
    markers = list(palette.replacements())
    steps = {palette.sequential(i / 255) for i in range(256)}
    fixed = {palette.ON_DARK, palette.ON_LIGHT, palette.HARM, palette.HELP}
    # As many as page colours and task colours: none has overwritten another.
    assert len(markers) == 5 + 8
    assert not set(markers) & (steps | fixed)
    for a, b in itertools.permutations(palette.replacements().values(), 2):
        assert a.partition(",")[0] != b.partition(",")[0]
