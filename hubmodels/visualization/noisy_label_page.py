"""The report of suspicious labels as one self-contained HTML page: pictures, filters, decisions to download."""

from __future__ import annotations

import base64
import html
import io
import json
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from hubmodels.evaluation import NoisyLabelReport
    from hubmodels.evaluation.noisy_label_report import SuspiciousLabel

LARGEST_SIDE = 192  # pixels of the pictures on the page
SMALL_SIDE = 64  # up to here pictures are kept without loss
HISTOGRAM_BINS = 20

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --mark: #c62828; --good: #2e7d32; }
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem auto; max-width: 1200px; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: .2rem; }
.facts { display: flex; flex-wrap: wrap; gap: 2rem; align-items: flex-end; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; }
td, th { text-align: left; padding: .1rem .8rem .1rem 0; }
.controls { position: sticky; top: 0; background: Canvas; padding: .6rem 0; border-bottom: 1px solid var(--line);
  display: flex; flex-wrap: wrap; gap: .8rem; align-items: center; z-index: 1; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .8rem; margin-top: 1rem; }
figure { margin: 0; border: 2px solid var(--line); border-radius: 8px; padding: .5rem; }
figure img { width: 100%; aspect-ratio: 1; object-fit: contain; image-rendering: auto; }
figure img.small { image-rendering: pixelated; }
figure.wrong { border-color: var(--mark); } figure.right { border-color: var(--good); }
figcaption { font-size: .85rem; overflow-wrap: anywhere; } .name { opacity: .65; font-size: .75rem; }
.given { text-decoration: line-through; text-decoration-color: var(--mark); } .suggested { font-weight: 600; }
.buttons { display: flex; gap: .3rem; margin-top: .3rem; } .buttons button { flex: 1; }
svg rect { fill: currentColor; opacity: .7; } svg text { font-size: 10px; fill: currentColor; }
"""

_SCRIPT = """
const decisions = {};
const cards = [...document.querySelectorAll('figure')];
const given = document.getElementById('given'), suggested = document.getElementById('suggested');
const most = document.getElementById('most'), shown = document.getElementById('shown');
function update() {
  document.getElementById('limit').textContent = most.value + ' %';
  let count = 0;
  for (const card of cards) {
    const fits = (!given.value || card.dataset.given === given.value)
      && (!suggested.value || card.dataset.suggested === suggested.value)
      && 100 * card.dataset.clean <= most.value;
    card.hidden = !fits; count += fits;
  }
  shown.textContent = count + ' of ' + cards.length + ' images, ' + Object.keys(decisions).length + ' decided';
}
for (const control of [given, suggested, most]) control.addEventListener('input', update);
document.querySelector('.grid').addEventListener('click', event => {
  const button = event.target.closest('button');
  if (!button) return;
  const card = button.closest('figure'), rank = card.dataset.rank, verdict = button.dataset.verdict;
  card.classList.remove('wrong', 'right');
  if (decisions[rank] === verdict) delete decisions[rank];
  else { decisions[rank] = verdict; card.classList.add(verdict); }
  update();
});
document.getElementById('download').addEventListener('click', () => {
  const quote = text => '"' + String(text).replaceAll('"', '""') + '"';
  const rows = ['rank,index,name,given,suggested,verdict'];
  for (const card of cards) if (decisions[card.dataset.rank]) rows.push([card.dataset.rank, card.dataset.index,
    quote(card.dataset.name), quote(card.dataset.given), quote(card.dataset.suggested),
    decisions[card.dataset.rank]].join(','));
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([rows.join('\\n') + '\\n'], {type: 'text/csv'}));
  link.download = 'label_decisions.csv';
  link.click();
});
update();
"""


def noisy_label_page(report: NoisyLabelReport, count: int, title: str) -> str:
    """Make the page.

    Args:
        report: The report.
        count: Images on the page.
        title: Heading.

    Returns:
        HTML that loads nothing from elsewhere.
    """
    entries = report.top(count)
    given, suggested = (
        _options(sorted({getattr(entry, kind) for entry in entries})) for kind in ("given", "suggested")
    )
    cards = "\n".join(_card(report, entry) for entry in entries)
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{_STYLE}</style></head>
<body>
<h1>{html.escape(title)}</h1>
<div>{report.num_wrong:,} of {len(report):,} labels are more probably wrong than right; the estimated share of wrong
labels is {report.estimated_noise:.1%}. Below are the {len(entries):,} most suspicious images, most suspicious
first.</div> <div class="facts">{_histogram(report.clean_prob)}{_confusions(report)}</div>
<div class="controls">
<label>given <select id="given"><option value="">all</option>{given}</select></label>
<label>suggested <select id="suggested"><option value="">all</option>{suggested}</select></label>
<label>label is right with at most <input type="range" id="most" min="0" max="100" value="100"> <span id="limit"></span>
</label>
<button id="download">Download decisions (CSV)</button> <span id="shown"></span>
</div>
<div class="grid">
{cards}
</div>
<script>{_SCRIPT}</script>
</body></html>
"""


def _options(names: list[str]) -> str:
    # Without a value the browser takes the text, and trims it.
    escaped = [html.escape(name) for name in names]
    return "".join(f'<option value="{name}">{name}</option>' for name in escaped)


def _card(report: NoisyLabelReport, entry: SuspiciousLabel) -> str:
    picture = report.picture(entry.rank)
    small = ' class="small"' if max(picture.shape[:2]) <= SMALL_SIDE else ""
    data = {
        "rank": entry.rank,
        "index": entry.index,
        "name": entry.name,
        "given": entry.given,
        "suggested": entry.suggested,
        "clean": entry.clean_probability,
    }
    attributes = " ".join(f'data-{key}="{html.escape(str(value))}"' for key, value in data.items())
    given, suggested, name = (html.escape(text) for text in (entry.given, entry.suggested, entry.name))
    return (
        f'<figure {attributes}><img{small} alt="{given}" loading="lazy" src="{_data_address(picture)}">'
        f'<figcaption>{entry.rank}. <span class="given">{given}</span> → <span class="suggested">{suggested}</span><br>'
        f"label is right: {entry.clean_probability:.1%}<br>"
        f"model: {entry.given_probability:.1%} → {entry.suggested_probability:.1%}"
        f'<div class="name">{name}</div><div class="buttons"><button data-verdict="wrong">wrong</button>'
        f'<button data-verdict="right">right</button></div></figcaption></figure>'
    )


def _data_address(picture: np.ndarray) -> str:
    """The picture itself as an address."""
    image = Image.fromarray(picture)
    file = io.BytesIO()
    if max(image.size) <= SMALL_SIDE:
        image.save(file, "PNG")
        kind = "png"
    else:
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        image.save(file, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _histogram(clean_prob: np.ndarray) -> str:
    """How probable the labels are, as a small chart."""
    counts, _ = np.histogram(clean_prob, bins=HISTOGRAM_BINS, range=(0, 1))
    heights = np.sqrt(counts / max(counts.max(), 1)) * 80  # square roots, so that few are seen beside many
    bars = "".join(
        f'<rect x="{10 * i}" y="{80 - height:.1f}" width="9" height="{height:.1f}"><title>{counts[i]:,}</title></rect>'
        for i, height in enumerate(heights)
    )
    width = 10 * HISTOGRAM_BINS
    return (
        f'<svg width="{width}" height="100" role="img" aria-label="{html.escape(json.dumps(counts.tolist()))}">{bars}'
        f'<text x="0" y="95">0 %</text><text x="{width // 2}" y="95" text-anchor="middle">label is right</text>'
        f'<text x="{width}" y="95" text-anchor="end">100 %</text></svg>'
    )


def _confusions(report: NoisyLabelReport) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(given)}</td><td>{html.escape(suggested)}</td><td>{number:,}</td></tr>"
        for given, suggested, number in report.confusions(6)
    )
    return f"<table><tr><th>given</th><th>suggested</th><th>images</th></tr>{rows}</table>" if rows else ""
