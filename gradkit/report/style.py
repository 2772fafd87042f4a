"""The look of the page: system fonts, light and dark, from a telephone to a wide screen."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --ink: #1b1f24; --muted: #59636e; --line: #d9dee3; --soft: #f5f7f9;
  --warn: #fff4e5; --warn-line: #d55e00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --ink: #e4e8ec; --muted: #9aa5b1; --line: #343b42; --soft: #1c2126;
    --warn: #2e2114; --warn-line: #e69f00;
  }
  svg [style*="stroke: #0072b2"] { stroke: #56b4e9 !important; }
  svg [style*="fill: #0072b2"] { fill: #56b4e9 !important; }
  svg [style*="stroke: #56b4e9"] { stroke: #7de8e0 !important; }
  svg [style*="fill: #56b4e9"] { fill: #7de8e0 !important; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 2.2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .8rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { margin: .5rem 0; max-width: 72ch; }
.outcome { font-size: 1.15rem; }
.notes { margin: 1.2rem 0; padding: .7rem 1rem .7rem 2rem; background: var(--warn);
  border-left: 4px solid var(--warn-line); border-radius: 4px; }
.numbers { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr));
  gap: .75rem; margin: 1.6rem 0 0; }
.numbers div { background: var(--soft); border-radius: 8px; padding: .7rem .8rem; }
.numbers dt { color: var(--muted); font-size: .82rem; line-height: 1.3; }
.numbers dd { margin: .15rem 0 0; font-size: 1.35rem; font-weight: 600; line-height: 1.3;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
figure { margin: 1.2rem 0; min-width: 0; }
figcaption { color: var(--muted); font-size: .9rem; margin-top: .4rem; max-width: 80ch; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 0 1.5rem; }
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid #0072b2; outline-offset: 2px; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif
  !important; }
.wide svg { min-width: 700px; }
.pair svg { max-width: 560px; }
.tables { display: flex; flex-wrap: wrap; gap: 0 2.5rem; }
.tables > * { max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; }
caption { text-align: left; color: var(--muted); padding: .3rem 0; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1.4rem .3rem 0;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
tbody th { font-weight: 500; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
.narrow { display: none; }
code, pre { font: .86rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
td code { overflow-wrap: anywhere; }
pre { background: var(--soft); border-radius: 8px; padding: .9rem 1rem; margin: .8rem 0;
  overflow-x: auto; }
footer { margin-top: 3rem; color: var(--muted); font-size: .85rem; }
@media (max-width: 480px) {
  main { padding: 1.4rem 1rem 3rem; }
  h1 { font-size: 1.5rem; }
  .narrow { display: block; font-weight: 600; }
  th, td { padding-right: .8rem; }
  .numbers { grid-template-columns: repeat(2, 1fr); gap: .5rem; }
  .numbers dd { font-size: 1.15rem; }
}
@media print {
  .wide svg { min-width: 0; }
  h2 { break-after: avoid; }
  figure { break-inside: avoid; }
}
""".strip()
