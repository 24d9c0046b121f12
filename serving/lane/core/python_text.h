// Texts for callers as Python's f-strings put them, where that can be said for sure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lane {

// Builds a text of at most 1000 characters, as serving/status.py cuts them.
class PythonText {
 public:
  // Text of our own, in ASCII.
  PythonText& plain(std::string_view text);
  PythonText& number(std::int64_t value);
  PythonText& number(std::size_t value);
  // A str's repr; not sure of what is not printable ASCII, or has an apostrophe or a backslash.
  PythonText& repr(std::string_view text);
  // A list's repr, "[1, 28, 28]".
  PythonText& repr(const std::vector<std::int64_t>& values);

  bool sure() const { return sure_; }
  const std::string& text() const { return text_; }

 private:
  bool full() const;

  std::string text_;
  bool sure_ = true;
};

}  // namespace lane
