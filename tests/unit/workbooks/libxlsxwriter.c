/* Writes libxlsxwriter.xlsx, as R's writexl does, which is a wrapper of this library:
   cc libxlsxwriter.c -lxlsxwriter && ./a.out */
#include <xlsxwriter.h>

static lxw_worksheet *page;
static lxw_workbook *book;
static lxw_row_t row = 0;

static lxw_format *look(const char *format) {
  if (!format) return NULL;
  lxw_format *made = workbook_add_format(book);
  format_set_num_format(made, format);
  return made;
}
static void name(const char *text) { worksheet_write_string(page, ++row, 0, text, NULL); }
static void text(const char *case_, const char *value) {
  name(case_);
  worksheet_write_string(page, row, 1, value, NULL);
}
static void number(const char *case_, double value, const char *format) {
  name(case_);
  worksheet_write_number(page, row, 1, value, look(format));
}
static void moment(const char *case_, lxw_datetime value, const char *format) {
  name(case_);
  worksheet_write_datetime(page, row, 1, &value, look(format));
}
static void formula(const char *case_, const char *value) {
  name(case_);
  worksheet_write_formula(page, row, 1, value, NULL);
}

int main(void) {
  book = workbook_new("libxlsxwriter.xlsx");
  page = workbook_add_worksheet(book, "Cells");
  worksheet_write_string(page, 0, 0, "Case", NULL);
  worksheet_write_string(page, 0, 1, "Cell", NULL);
  text("text", " Maïs 🌽");
  text("digits", "0007");
  text("escape", "lot_x0041_b");
  number("whole", 18, NULL);
  number("decimal", 12.5, NULL);
  number("sum", 0.1 + 0.2, NULL);
  number("third", 1.0 / 3, NULL);
  number("small", 0.00001, NULL);
  number("large", 1e15, NULL);
  moment("date", (lxw_datetime){2023, 9, 7, 0, 0, 0}, "yyyy-mm-dd");
  moment("day", (lxw_datetime){2026, 3, 1, 0, 0, 0}, "d-mmm");
  moment("east", (lxw_datetime){2024, 10, 31, 0, 0, 0}, "yyyy\"年\"m\"月\"d\"日\"");
  moment("time", (lxw_datetime){2023, 9, 7, 10, 30, 0}, "yyyy-mm-dd hh:mm");
  name("true");
  worksheet_write_boolean(page, row, 1, 1, NULL);
  name("false");
  worksheet_write_boolean(page, row, 1, 0, NULL);
  number("zeros", 7, "0000");
  number("prefix", 42, "\"BIO-\"000");
  number("percent", 0.125, "0.0%");
  number("rounded", 1234.5678, "#,##0.00");
  name("result");
  worksheet_write_formula_num(page, row, 1, "=1+1", NULL, 2);
  formula("no result", "=1+1");
  name("merged");
  worksheet_merge_range(page, row, 1, row + 1, 1, "Rice", NULL);
  name("covered");
  return workbook_close(book);
}
