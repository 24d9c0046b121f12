// The signatures of make_corpus.py.
#pragma once

#include <string>

#include "signature.h"

namespace lane {

inline Signature digits_signature() {
  return {"digits",
          "3",
          {{"images", "UINT8", {-1, 28, 28}}},
          {{"probabilities", "FP32", {-1, 10}}, {"labels", "INT64", {-1}}},
          {}};
}

inline Signature pair_signature() {
  return {"pair",
          "3",
          {{"values", "FP32", {-1, -1}}, {"mask", "BOOL", {-1, 2}}},
          {{"sums", "FP32", {-1, -1}}, {"flags", "BOOL", {-1}}},
          {}};
}

inline Signature signature_named(const std::string& name) {
  return name == "pair" ? pair_signature() : digits_signature();
}

}  // namespace lane
