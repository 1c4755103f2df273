"""Style sheet of a page, for light and dark screens, phones and print."""

from __future__ import annotations

from outlay.report.palette import GRID, INK, PALETTE, QUIET, TEXT_PALETTE

_BASE = """
:root { color-scheme: light dark;
  --ink: #1c1c1e; --quiet: #5c5c63; --paper: #ffffff; --line: #dcdce0; --front: #eef5fb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececf0; --quiet: #a2a2ab; --paper: #17171a; --line: #3a3a40; --front: #1d2b38; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
h1 { font-size: 1rem; font-weight: 500; color: var(--quiet); margin: 0 0 .6rem; }
h2 { font-size: 1.1rem; margin: 2.4rem 0 .6rem; }
.verdict { font-size: 1.55rem; line-height: 1.3; font-weight: 600; max-width: 52rem; margin: 1.2rem 0 .5rem; text-wrap: pretty; }
.verdict.short { font-size: 1.2rem; }
.verdict ~ .quiet { margin-bottom: .3rem; }
p, li { max-width: 44rem; }
.quiet { color: var(--quiet); margin-top: 0; }
figure { margin: 1.5rem 0 0; padding: .5rem; background: #ffffff; border: 1px solid var(--line); border-radius: .6rem; }
figure svg { display: block; width: 100%; height: auto; max-width: 46rem; margin: 0 auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .42rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--quiet); font-weight: 500; font-size: .85rem; border-bottom-width: 2px; }
th:first-child, td:first-child { text-align: left; }
tr.front td { background: var(--front); font-weight: 600; }
tr.next td { border-top: 2px solid var(--line); }
details { border-top: 1px solid var(--line); padding: .5rem 0; }
summary { cursor: pointer; font-weight: 500; }
pre { overflow-x: auto; font: 13px/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; margin: .6rem 0; }
@media (max-width: 40rem) {
  body { padding: 1.25rem .8rem 3rem; } .verdict { font-size: 1.3rem; } th, td { padding: .35rem .5rem; font-size: .85rem; }
}
@media print {
  :root { color-scheme: light; --ink: #000; --quiet: #444; --paper: #fff; --line: #bbb; --front: #f2f2f2; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .verdict { font-size: 14pt; }
  figure, table, details { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  pre { white-space: pre-wrap; font-size: 8pt; }
}
"""

# The hues of `PALETTE` and `TEXT_PALETTE`, light enough for a dark page (contrast 5 and more).
_DARK_PALETTE = ("#4FA8DC", "#F0843C", "#2CC39A", "#E09FC4", "#8CCBF2", "#F0B93C", "#ECECF0")


def _dark_rules() -> str:
    """Return the rules that replace the colours of a figure on a dark page."""
    inks = [(INK, "var(--ink)"), (QUIET, "var(--quiet)"), (GRID, "var(--line)"), ("#999999", "var(--quiet)")]
    pairs = [*inks, ("white", "var(--paper)"), *zip(PALETTE, _DARK_PALETTE, strict=True)]
    pairs += [pair for pair in zip(TEXT_PALETTE, _DARK_PALETTE, strict=True) if pair[0] not in PALETTE]
    return "\n".join(
        f'  .charts [fill="{old}"] {{ fill: {new}; }} .charts [stroke="{old}"] {{ stroke: {new}; }}'
        for old, new in pairs
    )


STYLE = f"""{_BASE}
h3 {{ font-size: 1rem; margin: 1.6rem 0 .4rem; }}
a {{ color: #0b61a4; }}
a:focus-visible, summary:focus-visible, .wide:focus-visible {{ outline: 3px solid #d55e00; outline-offset: 2px; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 1rem; margin-top: 1rem;
  align-items: start; }}
.charts figure {{ margin: 0; }}
.charts figure svg {{ max-width: 32rem; }}
.charts a:hover path, .charts a:focus-visible path {{ stroke: {INK}; stroke-width: 3; }}
.facts {{ display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 1rem 0; }}
.facts dt {{ color: var(--quiet); }}
.facts dd {{ margin: 0; overflow-wrap: anywhere; }}
code {{ font: .92em/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }}
.laid {{ margin-top: 1.6rem; }}
.laid caption {{ text-align: left; font-weight: 600; padding-bottom: .4rem; }}
.laid tbody th, .laid thead th[rowspan] {{ text-align: left; vertical-align: top; }}
.laid tbody th {{ color: var(--ink); border-bottom-width: 1px; white-space: normal; }}
.laid thead th[colspan] {{ text-align: center; }}
.laid thead th {{ text-align: right; }}
.laid thead .stub {{ text-align: left; }}
.laid tbody th {{ min-width: 6.5rem; }}
.kept .stub, .kept tbody th {{ position: sticky; left: 0; background: var(--paper); }}
.laid tbody tr:last-child > * {{ border-bottom-color: var(--quiet); }}
.laid .beneath {{ display: block; color: var(--quiet); font-size: .85em; font-weight: 400; }}
.laid .best {{ font-weight: 700; }}
.laid .front {{ background: var(--front); }}
.notes {{ color: var(--quiet); font-size: .88rem; margin-top: .5rem; padding-left: 1.1rem; }}
.points .name, .points td.reason {{ white-space: normal; text-align: left; }}
.points td.reason {{ color: var(--quiet); }}
tr:target td {{ background: var(--front); font-weight: 600; }}
tr:target, pre:target {{ scroll-margin-top: 4rem; }}
pre:target {{ outline: 2px solid #d55e00; outline-offset: 4px; }}
@media (max-width: 40rem) {{ .charts figure {{ padding: 0; }} .points td.link {{ white-space: normal; }} }}
@media screen and (prefers-color-scheme: dark) {{
  a {{ color: #7cc0f4; }}
  .charts figure {{ background: var(--paper); }}
{_dark_rules()}
  .charts a:hover path, .charts a:focus-visible path {{ stroke: var(--ink); }}
}}
@media print {{
  @page {{ size: A4; margin: 16mm 14mm; }}
  a {{ color: inherit; text-decoration: none; }}
  .charts {{ display: block; }}
  .charts figure {{ margin: 0 0 6mm; border: none; }}
  .charts figure svg {{ max-width: 120mm; max-height: 225mm; margin: 0; }}
  .wide {{ overflow: visible; }}
  table {{ break-inside: auto; font-size: 8.5pt; }}
  tr {{ break-inside: avoid; }}
  thead {{ display: table-header-group; }}
  th, td {{ padding: .25rem .4rem; }}
  th, .laid td.prose {{ white-space: normal; font-size: inherit; }}
  .kept .stub, .kept tbody th {{ position: static; }}
  section > .quiet {{ break-after: avoid; }}
  .receipts details:not([open]), td.link, th.link {{ display: none; }}
}}
"""
"""Style sheet of a study's page; its figures turn dark with the page."""
