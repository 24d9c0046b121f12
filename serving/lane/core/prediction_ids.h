// Signer: what was predicted, when and by which version, as a short text that we signed.
//
// The same format as serving/prediction_ids.py, which describes it, keeps the keys, and reads ids.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "outcome.h"

namespace lane {

// What an id says beside the model's name and version.
struct IdFields {
  std::uint64_t milliseconds = 0;  // since 1970
  std::uint64_t number = 0;        // tells it from every other id
  std::uint32_t label = 0;
  double confidence = 0;  // NaN where the model gives none
};

// Makes prediction ids, of any number of threads.
class Signer {
 public:
  // Throws std::runtime_error where OpenSSL has no SHA-256.
  explicit Signer(const std::string& key);
  ~Signer();
  // An id for each of `count` facts, joined by commas; empty for a label that is none of `classes`.
  std::string ids(const std::string& model, const std::string& version, std::int64_t classes,
                  const Fact* facts, std::int64_t count) const;
  // The id of given fields; `origin` is version and name, "3/resnet18".
  std::string id(const IdFields& fields, std::string_view origin) const;

 private:
  struct Keyed;
  std::unique_ptr<Keyed> keyed_;
  mutable std::atomic<std::uint64_t> next_;
};

}  // namespace lane
