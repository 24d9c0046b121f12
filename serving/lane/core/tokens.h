// Tokens: which bearer tokens there are, as serving/tokens.py reads them; whether one allows a
// ModelInfer, and how many more calls each may make in this process. Keeps their SHA-256 only.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "clock.h"
#include "status.h"

namespace lane {

using Digest = std::array<std::uint8_t, 32>;

// What one token allows.
struct Grant {
  std::string name;
  Digest digest{};
  bool infer = false;
  double rate = 0;  // calls per second; 0 sets no limit
  double burst = 1;
};

// Of what a connection sent last, and was good: most send the same each time.
struct KnownToken {
  std::string header;
  std::uint64_t edition = 0;  // of the tokens, that it was found in
  std::size_t place = 0;
};

class Tokens {
 public:
  explicit Tokens(bool needed) : needed_(needed) {}

  // --- of any thread ---
  // From now on there are these. Who is there still has had what it had.
  void set(std::vector<Grant> grants);
  // 0 where one more call was to be had of the token of that name; else seconds until there is one.
  Seconds wait(std::string_view name, Seconds now);

  // --- the I/O thread's ---
  bool needed() const { return needed_; }
  // How to refuse a ModelInfer with that `authorization` header, empty where there is none or more
  // than one. Nothing where it may be made; that is one of its token's rate.
  std::optional<Refusal> refuse(std::string_view header, KnownToken& known, Seconds now);

 private:
  struct Entry;
  struct Edition;

  const std::shared_ptr<const Edition>& newest();
  const Entry* find(const Edition& edition, std::string_view header, KnownToken& known) const;
  Seconds take(const Entry& entry, Seconds now);

  const bool needed_;
  std::atomic<std::uint64_t> number_{0};  // of the newest edition
  std::mutex mutex_;                      // of the next, and of all buckets
  std::shared_ptr<const Edition> set_;
  std::shared_ptr<const Edition> seen_;  // the I/O thread's
};

// Of a header "Bearer TOKEN"; empty where it is something else.
std::string_view bearer(std::string_view header);

}  // namespace lane
