// Which tokens are good: all are compared, in constant time. See tokens.h.
#include "tokens.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "abuse.h"

namespace lane {
namespace {

constexpr std::string_view scheme = "bearer";

Digest digest_of(std::string_view token) {
  Digest digest;
  unsigned size = 0;
  if (!EVP_Digest(token.data(), token.size(), digest.data(), &size, EVP_sha256(), nullptr)) {
    throw std::runtime_error("SHA-256 failed");
  }
  return digest;
}

bool same(std::string_view one, std::string_view other) {
  return one.size() == other.size() && CRYPTO_memcmp(one.data(), other.data(), one.size()) == 0;
}

Refusal unauthenticated(std::string details) {
  return {Code::unauthenticated, Reason::unauthenticated, std::move(details)};
}

}  // namespace

struct Tokens::Entry {
  Grant grant;
  std::shared_ptr<TokenBucket> bucket;  // null without a rate; the mutex's
};

struct Tokens::Edition {
  std::uint64_t number;
  std::vector<Entry> entries;
};

std::string_view bearer(std::string_view header) {
  const auto lower = [](char c) { return 'A' <= c && c <= 'Z' ? static_cast<char>(c + 32) : c; };
  if (header.size() <= scheme.size() || header[scheme.size()] != ' ') return {};
  for (std::size_t i = 0; i < scheme.size(); ++i) {
    if (lower(header[i]) != scheme[i]) return {};
  }
  header.remove_prefix(std::min(header.find_first_not_of(' ', scheme.size()), header.size()));
  return header.substr(0, header.find_last_not_of(' ') + 1);
}

void Tokens::set(std::vector<Grant> grants) {
  const std::lock_guard<std::mutex> guard(mutex_);
  auto next = std::make_shared<Edition>(Edition{number_ + 1, {}});
  for (Grant& grant : grants) {
    std::shared_ptr<TokenBucket> bucket;
    if (grant.rate > 0) bucket = std::make_shared<TokenBucket>(grant.rate, grant.burst, now());
    if (set_ && bucket) {
      for (const Entry& before : set_->entries) {
        const Grant& had = before.grant;
        const bool alike = had.rate == grant.rate && had.burst == grant.burst;
        if (had.name == grant.name && alike) bucket = before.bucket;
      }
    }
    next->entries.push_back({std::move(grant), std::move(bucket)});
  }
  set_ = std::move(next);
  number_ = set_->number;
}

Seconds Tokens::wait(std::string_view name, Seconds now) {
  std::shared_ptr<const Edition> edition;
  {
    const std::lock_guard<std::mutex> guard(mutex_);
    edition = set_;
  }
  if (!edition) return 0;
  for (const Entry& entry : edition->entries) {
    if (entry.grant.name == name) return take(entry, now);
  }
  return 0;
}

Seconds Tokens::take(const Entry& entry, Seconds now) {
  if (!entry.bucket) return 0;
  const std::lock_guard<std::mutex> guard(mutex_);
  return entry.bucket->take(now) ? 0 : entry.bucket->wait();
}

std::optional<Refusal> Tokens::refuse(std::string_view header, KnownToken& known, Seconds now) {
  if (!needed_) return std::nullopt;
  if (bearer(header).empty()) {
    return unauthenticated("this needs a token: authorization: Bearer TOKEN");
  }
  const auto& edition = newest();
  const Entry* entry = edition ? find(*edition, header, known) : nullptr;
  if (!entry) return unauthenticated("the token is not known");
  if (!entry->grant.infer) {
    return Refusal{Code::permission_denied, Reason::not_allowed,
                   "the token has not the role infer"};
  }
  const Seconds wait = take(*entry, now);
  if (wait <= 0) return std::nullopt;
  return Refusal{Code::resource_exhausted, Reason::rate_limited,
                 "the token has had as many calls as it may", wait};
}

const std::shared_ptr<const Tokens::Edition>& Tokens::newest() {
  if (number_ != (seen_ ? seen_->number : 0)) {
    const std::lock_guard<std::mutex> guard(mutex_);
    seen_ = set_;
  }
  return seen_;
}

const Tokens::Entry* Tokens::find(const Edition& edition, std::string_view header,
                                  KnownToken& known) const {
  if (known.edition == edition.number && same(known.header, header)) {
    return &edition.entries[known.place];
  }
  const Digest digest = digest_of(bearer(header));
  const Entry* found = nullptr;
  for (const Entry& each : edition.entries) {
    if (CRYPTO_memcmp(each.grant.digest.data(), digest.data(), digest.size()) == 0) found = &each;
  }
  if (!found) return nullptr;
  known.header.assign(header);
  known.edition = edition.number;
  known.place = static_cast<std::size_t>(found - edition.entries.data());
  return found;
}

}  // namespace lane
