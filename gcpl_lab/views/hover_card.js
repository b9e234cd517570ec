// Details of the mark that is pointed at, into the card beside the maps.
const place = cb_data.index.indices[0]
if (place === undefined) return
const data = source.data
function safe(text) { const part = document.createElement("span"); part.textContent = text; return part.innerHTML }
const lines = []
const look = 'alt="image" width="160" style="image-rendering:pixelated"'
if (data.picture) lines.push(`<img src="${data.picture[place]}" ${look}>`)
lines.push(`<b>${safe(data.label[place])}</b>`)
if (data["prediction" + turn]) {
  const chance = data["probability" + turn] ? ` (${data["probability" + turn][place]})` : ""
  lines.push(`${safe(state)}`, `predicted: ${safe(data["prediction" + turn][place])}${chance}`)
}
if (data.file) lines.push(safe(data.file[place]))
card.text = lines.join("<br>")
