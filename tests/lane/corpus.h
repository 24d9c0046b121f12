// The files that make_corpus.py wrote.
#pragma once

#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

namespace lane {

inline std::string corpus_file(const std::string& name) {
  const auto path = std::filesystem::path(__FILE__).parent_path() / "corpus" / name;
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("no " + path.string());
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace lane
