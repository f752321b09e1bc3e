"""The style sheet of the report: light or dark as the reader's system says, one column on a narrow screen."""

# Hues that stay apart for colour-blind readers; each a little lighter on the dark ground.
_LIGHT = ("#2a78d6", "#d9541e", "#128a60", "#a87000", "#c2457d", "#4a3aa7", "#157315", "#c92f2f")
_DARK = ("#5a9df0", "#f0824f", "#35b98a", "#d9a228", "#e47fab", "#a297f2", "#5cb85c", "#f07878")


def _colours(palette: tuple[str, ...]) -> str:
    return " ".join(f"--s{place}: {colour};" for place, colour in enumerate(palette))


STYLE = f"""
:root {{
  color-scheme: light dark;
  --ground: #fdfdfc; --panel: #ffffff; --ink: #1c1c22; --muted: #5c5c68; --faint: #dddde3; --link: #1f5fae;
  {_colours(_LIGHT)}
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --ground: #141416; --panel: #1d1d20; --ink: #ececf0; --muted: #a5a5b0; --faint: #3a3a42; --link: #8ab8f5;
    {_colours(_DARK)}
  }}
}}
* {{ box-sizing: border-box; }}
body {{
  margin: 0 auto; padding: 1rem clamp(0.8rem, 3vw, 2.5rem) 4rem; max-width: 88rem; background: var(--ground);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}}
a {{ color: var(--link); }}
h1 {{ font-size: 1.8rem; line-height: 1.2; margin: 1rem 0 0.3rem; }}
h2 {{
  font-size: 1.35rem; line-height: 1.25; margin: 3rem 0 0.5rem; padding-top: 0.8rem;
  border-top: 2px solid var(--faint);
}}
h3 {{ font-size: 1.05rem; margin: 1.8rem 0 0.6rem; }}
h4 {{ font-size: 1rem; margin: 1.5rem 0 0.5rem; }}
p, ul {{ max-width: 75ch; }}
.muted, figcaption, .remarks {{ color: var(--muted); font-size: 0.9rem; }}
.scroll {{ overflow-x: auto; border: 1px solid var(--faint); border-radius: 6px; background: var(--panel); }}
.scroll:focus-visible {{ outline: 2px solid var(--link); }}
table {{
  border-collapse: collapse; width: 100%; font-size: 0.92rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal;
}}
th, td {{ padding: 0.4rem 0.6rem; text-align: right; border-bottom: 1px solid var(--faint); white-space: nowrap; }}
tbody tr:last-child > * {{ border-bottom: 0; }}
th:first-child, td:last-child, th:last-child {{ text-align: left; }}
thead th {{ color: var(--muted); font-weight: 600; vertical-align: bottom; }}
thead th span {{ display: block; font-weight: 400; }}
tbody th {{ font-weight: 600; }}
.note {{ overflow-x: auto; }}
.note table {{ width: auto; }}
.note td:first-child {{ text-align: left; }}
.note td:last-child, .note th:last-child {{ text-align: right; }}
@media (min-width: 40rem) {{ tr > th:first-child {{ position: sticky; left: 0; background: var(--panel); }} }}
.ours {{ font-weight: 600; }}
.absent {{ color: var(--muted); font-style: italic; font-weight: 400; }}
.swatch {{ margin-right: 0.45em; vertical-align: 0.1em; }}
.legend {{ list-style: none; display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; margin: 0.4rem 0; padding: 0; }}
.charts {{
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1rem;
  align-items: start;
}}
.pictures {{
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1rem;
  align-items: start;
}}
.paths {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1rem; }}
figure {{ margin: 0; padding: 0.7rem; background: var(--panel); border: 1px solid var(--faint); border-radius: 6px; }}
figcaption {{ margin-bottom: 0.4rem; }}
.chart figcaption {{ color: var(--ink); font-weight: 600; }}
img, video {{ display: block; max-width: 100%; height: auto; border-radius: 3px; }}
video {{ min-width: min(100%, 15rem); }}  /* room for the controls */
.chart svg, .path svg {{ display: block; width: 100%; height: auto; }}
svg text {{ font: 12px system-ui, sans-serif; fill: var(--muted); }}
svg text.name {{ fill: var(--ink); stroke: var(--panel); stroke-width: 4px; paint-order: stroke; }}
.grid {{ stroke: var(--faint); stroke-width: 1; }}
.line {{ fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }}
.dashed {{ stroke-dasharray: 6 4; }}
.dot {{ fill: var(--c); fill-opacity: 0.75; stroke: var(--panel); stroke-width: 1; }}
{" ".join(f".s{place} {{ --c: var(--s{place}); }}" for place in range(len(_LIGHT)))}
.path .cell {{ fill: none; stroke: var(--faint); }}
.path .way {{ fill: none; stroke: var(--s0); stroke-width: 2.5; stroke-linejoin: round; stroke-linecap: round; }}
.path .first {{ fill: var(--s0); }}
.path .last {{ fill: var(--s1); }}
details {{
  margin: 0.5rem 0; padding: 0.4rem 0.8rem; border: 1px solid var(--faint); border-radius: 6px;
  background: var(--panel);
}}
summary {{ cursor: pointer; font-weight: 600; }}
dl {{
  display: grid; grid-template-columns: minmax(8rem, max-content) minmax(0, 1fr); gap: 0.15rem 1rem;
  font-size: 0.9rem;
}}
dt {{ color: var(--muted); }}
dd {{ margin: 0; }}
code {{ font-size: 0.9em; }}
@media (max-width: 30rem) {{ dl {{ grid-template-columns: 1fr; }} dt {{ margin-top: 0.4rem; }} }}
"""
