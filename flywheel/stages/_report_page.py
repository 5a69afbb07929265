"""The page's paper: style, escaping, and the few pieces of HTML that every section uses.

Text from a store (an episode's origin, a reason, a file's name) is never trusted: all of it goes through `esc`. The page runs
no script and its policy forbids any, so that it is the same offline, in a mail and in a browser.
"""

from __future__ import annotations

import re
from html import escape
from typing import Any

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def esc(value: Any, limit: int = 600) -> str:
    """Any value as text that HTML shows and never interprets; long ones are cut."""
    text = CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(value))
    return escape(text if len(text) <= limit else text[: limit - 1] + "…")


def rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def p_value(p: float | None) -> str:
    """p = 1e-12, p = 0.04."""
    if p is None:
        return "–"
    return f"{p:.0e}" if p < 1e-4 else f"{p:.2g}" if p < 0.995 else "1"


def size(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def moment(stamp: str) -> str:
    """2025-11-22T06:41:07Z as 2025-11-22 06:41 UTC."""
    return esc(stamp[:16].replace("T", " ") + " UTC") if len(stamp) >= 16 else esc(stamp)


def section(name: str, title: str, lead: str, *parts: str) -> str:
    """`lead` and `parts` are HTML already."""
    lead = f'<p class="lead">{lead}</p>' if lead else ""
    return f'<section id="{name}"><h2>{esc(title)}</h2>{lead}{"".join(parts)}</section>\n'


def card(title: str, body: str, note: str = "") -> str:
    """A box with a heading; `body` and `note` are HTML already."""
    note = f'<p class="note">{note}</p>' if note else ""
    head = f"<h3>{esc(title)}</h3>" if title else ""
    return f'<div class="card">{head}{body}{note}</div>\n'


def chart(title: str, svg: str, note: str = "") -> str:
    return card(title, f"<figure>{svg}</figure>", note)


def grid(*cards: str) -> str:
    return f'<div class="grid">{"".join(cards)}</div>\n' if any(cards) else ""


def empty(text: str, command: str = "") -> str:
    """What is missing, and the command that makes it."""
    return f'<p class="empty">{esc(text)}{f" <code>{esc(command)}</code>" if command else ""}</p>'


def table(heads: list[str], rows: list[list[str]], kinds: str = "") -> str:
    """`rows` are HTML already; `kinds` has a letter a column: n for numbers, m for ids."""
    names = {"n": ' class="num"', "m": ' class="id"'}
    marks = [names.get(k, "") for k in kinds.ljust(len(heads))]
    head = "".join(f'<th scope="col"{m}>{esc(h)}</th>' for h, m in zip(heads, marks, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{m}>{c}</td>" for c, m in zip(row, marks, strict=True)) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def interval(value: float, low: float, high: float, label: str) -> str:
    """A rate between 0 and 1 with its interval, drawn as a dot on a bar."""
    return (
        f'<div class="track" role="img" aria-label="{esc(label)}: {value:.3f}, 95 % interval {low:.3f} to {high:.3f}">'
        f'<i class="ci" style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></i>'
        f'<i class="dot" style="left:{100 * value:.1f}%"></i></div>'
    )


def bar(share: float) -> str:
    """A share of a whole as a plain bar."""
    return f'<div class="share" aria-hidden="true"><i style="width:{100 * min(1.0, share):.1f}%"></i></div>'


def page(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">\n'
        f"<title>{esc(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n{body}</body></html>\n"
    )


STYLE = """
:root{--bg:#f5f6f4;--card:#fff;--ink:#1d2731;--soft:#55616d;--line:#dde2e5;--blue:#2368a8;--green:#2b7a57;
--orange:#bb4d12;--violet:#6d50a3;--grey:#8995a0;--teal:#14747c;--rose:#a83e62;--good:#e3f2ea;--bad:#fbeadf}
@media(prefers-color-scheme:dark){:root{--bg:#13171b;--card:#1b2127;--ink:#e5eaee;--soft:#a5b1bc;--line:#333d46;
--blue:#6eb1ee;--green:#62c497;--orange:#f0965a;--violet:#b79ce8;--grey:#7d8993;--teal:#54bcc4;--rose:#e58aa9;
--good:#1b3a2c;--bad:#432a1c}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
header,main,footer{max-width:1216px;margin:0 auto;padding:0 16px}
header{padding-top:32px}h1{margin:0;font-size:20px;font-weight:400;line-height:1.35;color:var(--soft);overflow-wrap:anywhere}
h1 b{color:var(--ink)}h1 .big{display:block;font-size:clamp(40px,8vw,64px);font-weight:650;letter-spacing:-.02em;line-height:1.15;color:var(--ink)}
h1 .word{color:var(--soft);font-size:.45em;font-weight:400;letter-spacing:0}
.chip{display:inline-block;padding:1px 10px;border-radius:99px;font-weight:600;background:var(--good);color:var(--green)}
.chip.no{background:var(--bad);color:var(--orange)}
header p{margin:8px 0 0;color:var(--soft);max-width:76ch}
section{margin:40px 0 0}h2{font-size:21px;font-weight:650;margin:0 0 4px}h3{font-size:15px;font-weight:600;margin:0 0 8px}
.lead{margin:0 0 16px;color:var(--soft);max-width:76ch}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(350px,100%),1fr));gap:16px;align-items:start}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px;min-width:0;margin:0 0 16px}
.grid .card{margin:0;height:100%}.grid+.card{margin-top:16px}
.note,.more{margin:8px 0 0;font-size:13.5px;color:var(--soft);overflow-wrap:anywhere}
figure{margin:0}figure svg{display:block;width:100%;height:auto;overflow:visible}
figure img{display:block;width:100%;height:auto;border-radius:6px;background:var(--line)}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14.5px}
th{text-align:left;color:var(--soft)}th,th.id{font:600 13px/1.5 system-ui,sans-serif}th.num{text-align:right}th,td{padding:7px 12px 7px 0;vertical-align:top;overflow-wrap:anywhere}
th:last-child,td:last-child{padding-right:0}tbody tr{border-top:1px solid var(--line)}
.num{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}.id,code{font:13px/1.5 ui-monospace,"DejaVu Sans Mono",monospace}
code{overflow-wrap:anywhere;background:var(--bg);padding:1px 4px;border-radius:4px}
.sub{display:block;font-size:13px;color:var(--soft)}.yes{color:var(--green)}.nope{color:var(--orange)}

.sub.id{font-size:12px}.empty{color:var(--soft);margin:0}
.track{position:relative;height:14px;min-width:110px;background:linear-gradient(var(--line),var(--line)) 0 50%/100% 2px no-repeat}
.track i{position:absolute;top:50%}.track .ci{height:8px;margin-top:-4px;background:var(--blue);opacity:.35;border-radius:4px}
.track .dot{width:10px;height:10px;margin:-5px 0 0 -5px;border-radius:50%;background:var(--blue)}
.rows{display:grid;grid-template-columns:minmax(9em,auto) minmax(100px,3fr) auto;gap:8px 16px;align-items:center;font-size:14.5px}
.grid .rows{grid-template-columns:1fr auto;grid-auto-flow:dense;gap:4px 12px}.grid .rows .track,.grid .rows .share{grid-column:1/-1;margin-bottom:6px}
.rows .sep{grid-column:1/-1;border-top:1px solid var(--line)}.rows .name{overflow-wrap:anywhere}
.share{height:8px;background:var(--line);border-radius:4px}.share i{display:block;height:100%;border-radius:4px;background:var(--blue)}
ol.log{list-style:none;margin:0;padding:0}ol.log li{padding:9px 0;border-top:1px solid var(--line)}ol.log li:first-child{border:0;padding-top:0}
ol.graph{list-style:none;margin:0;padding:0}ol.graph li{position:relative;padding:5px 0}
ol.graph svg{position:absolute;left:0;top:0;height:100%;overflow:visible}ol.graph .mark{position:absolute;top:50%;width:12px;height:12px;margin:-6px 0 0 -6px}
ol.graph .what{font-weight:600}ol.graph p{margin:0;overflow-wrap:anywhere}
footer{padding:32px 16px 48px;color:var(--soft);font-size:13.5px}
@media(max-width:640px){header{padding-top:20px}section{margin-top:32px}.card{padding:14px}
.rows{grid-template-columns:1fr auto;grid-auto-flow:dense;gap:4px 12px}.rows .track,.rows .share{grid-column:1/-1}}
@media(min-width:900px){main{display:grid;grid-template-columns:1fr 1fr;column-gap:16px}section{grid-column:1/-1;min-width:0}
#gate,#lineage{grid-column:auto;display:flex;flex-direction:column}#gate .card,#lineage .card{flex:1}}
"""
