// Saves what is selected, or all, as selection.csv.
const data = source.data, chosen = source.selected.indices
const rows = chosen.length ? chosen : [...data.label.keys()]
const cell = (text) => `"${String(text).replaceAll('"', '""')}"`
const lines = rows.map((place) => [
  data.file ? data.file[place] : `image ${place}`, data.label[place],
  data["prediction" + turn] ? data["prediction" + turn][place] : "",
  data["probability" + turn] ? data["probability" + turn][place] : "",
].map(cell).join(","))
const link = document.createElement("a")
link.href = URL.createObjectURL(new Blob(["file,class,prediction,probability\n" + lines.join("\n") + "\n"]))
link.download = "selection.csv"
link.click()
