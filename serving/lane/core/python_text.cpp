// How Python writes str and list of int.
#include "python_text.h"

#include <algorithm>

namespace lane {
namespace {

constexpr std::size_t kMostCharacters = 1000;

bool needs_no_escape(char character) {
  return character >= ' ' && character <= '~' && character != '\'' && character != '\\';
}

}  // namespace

bool PythonText::full() const { return text_.size() >= kMostCharacters; }

PythonText& PythonText::plain(std::string_view text) {
  text_.append(text.substr(0, kMostCharacters - text_.size()));
  return *this;
}

PythonText& PythonText::number(std::int64_t value) { return plain(std::to_string(value)); }

PythonText& PythonText::number(std::size_t value) { return plain(std::to_string(value)); }

PythonText& PythonText::repr(std::string_view text) {
  // All of it, also beyond what fits: a quote at its end changes how the text begins.
  sure_ = sure_ && std::all_of(text.begin(), text.end(), needs_no_escape);
  return plain("'").plain(text).plain("'");
}

PythonText& PythonText::repr(const std::vector<std::int64_t>& values) {
  plain("[");
  for (std::size_t index = 0; index < values.size() && !full(); ++index) {
    plain(index == 0 ? "" : ", ").number(values[index]);
  }
  return plain("]");
}

}  // namespace lane
