// Writes sheetjs.xlsx: npm install xlsx@0.18.5 && node sheetjs.js
const XLSX = require("xlsx");
const day = (y, m, d, h = 0, min = 0) => Date.UTC(y, m - 1, d, h, min) / 864e5 + 25569;
const cells = [
  ["text", { t: "s", v: " Maïs 🌽" }],
  ["digits", { t: "s", v: "0007" }],
  ["escape", { t: "s", v: "lot_x0041_b" }],
  ["whole", { t: "n", v: 18 }],
  ["decimal", { t: "n", v: 12.5 }],
  ["sum", { t: "n", v: 0.1 + 0.2 }],
  ["third", { t: "n", v: 1 / 3 }],
  ["small", { t: "n", v: 0.00001 }],
  ["large", { t: "n", v: 1e15 }],
  ["date", { t: "n", v: day(2023, 9, 7), z: "yyyy-mm-dd" }],
  ["day", { t: "n", v: day(2026, 3, 1), z: "d-mmm" }],
  ["east", { t: "n", v: day(2024, 10, 31), z: 'yyyy"年"m"月"d"日"' }],
  ["time", { t: "n", v: day(2023, 9, 7, 10, 30), z: "yyyy-mm-dd hh:mm" }],
  ["true", { t: "b", v: true }],
  ["false", { t: "b", v: false }],
  ["error", { t: "e", v: 42 }],
  ["zeros", { t: "n", v: 7, z: "0000" }],
  ["prefix", { t: "n", v: 42, z: '"BIO-"000' }],
  ["percent", { t: "n", v: 0.125, z: "0.0%" }],
  ["rounded", { t: "n", v: 1234.5678, z: "#,##0.00" }],
  ["result", { t: "n", v: 2, f: "1+1" }],
  ["no result", { t: "n", f: "1+1" }],
  ["merged", { t: "s", v: "Rice" }],
  ["covered", null],
];
const page = { A1: { t: "s", v: "Case" }, B1: { t: "s", v: "Cell" }, "!ref": `A1:B${cells.length + 1}` };
cells.forEach(([name, cell], index) => {
  page[`A${index + 2}`] = { t: "s", v: name };
  if (cell) page[`B${index + 2}`] = cell;
});
page["!merges"] = [{ s: { r: 23, c: 1 }, e: { r: 24, c: 1 } }];
const book = XLSX.utils.book_new();
XLSX.utils.book_append_sheet(book, page, "Cells");
XLSX.writeFile(book, "sheetjs.xlsx", { compression: true });
