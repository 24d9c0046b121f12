// Signs and writes prediction ids: the fields, their HMAC (RFC 2104) and base64url (RFC 4648, 5).

// SHA-256 by the functions that OpenSSL 3 calls old: a hash that was begun is copied by an
// assignment, and with EVP by two allocations: 0.1 µs for each id.
#define OPENSSL_SUPPRESS_DEPRECATED

#include "prediction_ids.h"

#include <endian.h>
#include <openssl/rand.h>
#include <openssl/sha.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <stdexcept>

namespace lane {
namespace {

constexpr std::uint64_t kFormat = 1;
constexpr std::size_t kBlockBytes = 64;   // of SHA-256
constexpr std::size_t kDigestBytes = 32;
constexpr std::size_t kMacBytes = 16;
constexpr std::uint16_t kSteps = 65534;
constexpr std::uint16_t kUnknown = 65535;
constexpr char kAlphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

using Digest = std::array<unsigned char, kDigestBytes>;

// Such a hash, with what it has taken in.
struct Hash {
  SHA256_CTX context;

  Hash() { SHA256_Init(&context); }
  void add(const void* content, std::size_t size) { SHA256_Update(&context, content, size); }
  Digest end() {
    Digest digest;
    SHA256_Final(digest.data(), &context);
    return digest;
  }
};

// RFC 2104: a longer key is its hash.
std::string short_key(const std::string& key) {
  if (key.size() <= kBlockBytes) return key;
  Hash hash;
  hash.add(key.data(), key.size());
  const Digest digest = hash.end();
  return std::string(digest.begin(), digest.end());
}

// One that has taken the key in, XORed with the pad.
Hash keyed(std::string key, unsigned char pad) {
  key.resize(kBlockBytes, '\0');
  for (char& byte : key) byte = static_cast<char>(static_cast<unsigned char>(byte) ^ pad);
  Hash hash;
  hash.add(key.data(), key.size());
  return hash;
}

void append_big_endian(std::string& out, std::uint64_t value, std::size_t bytes) {
  const std::uint64_t first_bytes = htobe64(value << (64 - 8 * bytes));
  out.append(reinterpret_cast<const char*>(&first_bytes), bytes);
}

// A NaN is neither above 0 nor below.
std::uint16_t steps_of(double confidence) {
  if (confidence >= 1.0) return kSteps;
  if (confidence >= 0.0) {
    return std::min(kSteps, static_cast<std::uint16_t>(confidence * kSteps + 0.5));
  }
  return confidence < 0.0 ? 0 : kUnknown;
}

// Base64url without padding.
void append_base64(std::string& out, const std::string& raw) {
  const std::size_t before = out.size();
  out.resize(before + (8 * raw.size() + 5) / 6);
  char* to = &out[before];
  std::uint32_t bits = 0;
  int held = 0;  // bits that are not written yet
  for (const char byte : raw) {
    bits = bits << 8 | static_cast<unsigned char>(byte);
    for (held += 8; held >= 6; held -= 6) *to++ = kAlphabet[bits >> (held - 6) & 63];
  }
  if (held > 0) *to = kAlphabet[bits << (6 - held) & 63];
}

std::uint64_t milliseconds_since_1970() {
  timespec time;
  clock_gettime(CLOCK_REALTIME, &time);
  return static_cast<std::uint64_t>(time.tv_sec) * 1000 +
         static_cast<std::uint64_t>(time.tv_nsec) / 1000000;
}

// 63 bits, so that no process counts to the end.
std::uint64_t random_start() {
  std::uint64_t start = 0;
  if (RAND_bytes(reinterpret_cast<unsigned char*>(&start), sizeof start) != 1) {
    throw std::runtime_error("OpenSSL has no random numbers");
  }
  return start >> 1;
}

}  // namespace

struct Signer::Keyed {
  Hash inner;
  Hash outer;

  // Appends the first half of the content's HMAC.
  void sign(std::string& content) const {
    Hash first = inner;
    first.add(content.data(), content.size());
    const Digest hash = first.end();
    Hash second = outer;
    second.add(hash.data(), hash.size());
    const Digest mac = second.end();
    content.append(mac.begin(), mac.begin() + kMacBytes);
  }

  // Appends one id; `raw` is emptied, and there to save allocations.
  void append(std::string& out, std::string& raw, const IdFields& fields,
              std::string_view origin) const {
    raw.clear();
    append_big_endian(raw, kFormat << 56 | fields.milliseconds, 8);
    append_big_endian(raw, fields.number, 8);
    append_big_endian(raw, fields.label, 4);
    append_big_endian(raw, steps_of(fields.confidence), 2);
    raw += origin;
    sign(raw);
    append_base64(out, raw);
  }
};

Signer::Signer(const std::string& key) : next_(random_start()) {
  const std::string fit = short_key(key);
  keyed_ = std::make_unique<Keyed>(Keyed{keyed(fit, 0x36), keyed(fit, 0x5c)});
}

Signer::~Signer() = default;

std::string Signer::ids(const std::string& model, const std::string& version, std::int64_t classes,
                        const Fact* facts, std::int64_t count) const {
  const std::string origin = version + "/" + model;
  IdFields fields;
  fields.milliseconds = milliseconds_since_1970();
  std::string ids, raw;
  ids.reserve(static_cast<std::size_t>(count) * (64 + 2 * origin.size()));
  raw.reserve(64 + origin.size());
  for (const Fact* fact = facts; fact != facts + count; ++fact) {
    if (fact != facts) ids.push_back(',');
    if (fact->label < 0 || fact->label >= classes) continue;
    fields.number = next_.fetch_add(1, std::memory_order_relaxed);
    fields.label = static_cast<std::uint32_t>(fact->label);
    fields.confidence = fact->confidence;
    keyed_->append(ids, raw, fields, origin);
  }
  return ids;
}

std::string Signer::id(const IdFields& fields, std::string_view origin) const {
  std::string id, raw;
  keyed_->append(id, raw, fields, origin);
  return id;
}

}  // namespace lane
