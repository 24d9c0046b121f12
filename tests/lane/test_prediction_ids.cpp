// The lane's prediction ids are the Python server's: corpus/prediction_ids.txt has some of those.
#include "prediction_ids.h"

#include <doctest/doctest.h>
#include <time.h>

#include <cmath>
#include <set>
#include <sstream>
#include <thread>

#include "corpus.h"
#include "words.h"

using namespace lane;

namespace {

const std::string kKey = "a key for tests: 32 bytes or so.";

std::string text_of_hex(const std::string& hex) {
  std::string text;
  for (const std::byte byte : from_hex(hex)) text.push_back(static_cast<char>(byte));
  return text;
}

std::vector<std::string> split(const std::string& joined) {
  std::vector<std::string> parts(1);
  for (const char each : joined) {
    if (each == ',') {
      parts.emplace_back();
    } else {
      parts.back().push_back(each);
    }
  }
  return parts;
}

// So many bytes of an id as a number, big-endian.
std::uint64_t number_in(const std::string& id, std::size_t at, std::size_t size) {
  const std::string alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  std::uint64_t number = 0;
  for (std::size_t bit = 8 * at; bit < 8 * (at + size); ++bit) {
    number = number << 1 | (alphabet.find(id[bit / 6]) >> (5 - bit % 6) & 1);
  }
  return number;
}

}  // namespace

TEST_CASE("an id of the same fields is the Python server's, byte for byte") {
  std::istringstream lines(corpus_file("prediction_ids.txt"));
  std::string key, confidence, origin, expected;
  IdFields fields;
  int count = 0;
  while (lines >> key >> fields.milliseconds >> fields.number >> fields.label >> confidence >>
         origin >> expected) {
    fields.confidence = double_of(confidence);
    CHECK(Signer(text_of_hex(key)).id(fields, origin) == expected);
    ++count;
  }
  CHECK(count == 27);
}

TEST_CASE("each fact has an id of its own, which says what was predicted now") {
  const Signer signer(kKey);
  const Fact facts[] = {{3, 0.5, 0, 0}, {1, std::nan(""), 0, 0}};
  const auto before = static_cast<std::uint64_t>(::time(nullptr)) * 1000;
  const auto ids = split(signer.ids("digits", "7", 10, facts, 2));
  REQUIRE(ids.size() == 2);
  IdFields fields;
  fields.milliseconds = number_in(ids[0], 1, 7);
  fields.number = number_in(ids[0], 8, 8);
  fields.label = 3;
  fields.confidence = 0.5;
  CHECK(fields.milliseconds >= before);
  CHECK(fields.milliseconds < before + 60'000);
  CHECK(ids[0] == signer.id(fields, "7/digits"));
  ++fields.number;
  fields.label = 1;
  fields.confidence = std::nan("");
  CHECK(ids[1] == signer.id(fields, "7/digits"));
}

TEST_CASE("a label that is none of the classes has an empty id") {
  const Signer signer(kKey);
  const Fact facts[] = {{-1, 1, 0, 0}, {2, 1, 0, 0}, {3, 1, 0, 0}, {1LL << 40, 1, 0, 0}};
  const auto ids = split(signer.ids("m", "1", 3, facts, 4));
  REQUIRE(ids.size() == 4);
  CHECK(ids[0].empty());
  CHECK(ids[1].size() == 55);
  CHECK(ids[2].empty());
  CHECK(ids[3].empty());
}

TEST_CASE("two processes with one key make no id twice, as they start at random numbers") {
  const Fact fact{0, 1, 1, 1};
  const Signer one(kKey), other(kKey);
  CHECK(number_in(one.ids("m", "1", 1, &fact, 1), 8, 8) !=
        number_in(other.ids("m", "1", 1, &fact, 1), 8, 8));
}

TEST_CASE("threads that sign at the same time make different ids") {
  const Signer signer(kKey);
  const std::vector<Fact> facts(200, Fact{0, 1, 1, 1});
  std::vector<std::string> joined(4);
  std::vector<std::thread> threads;
  for (std::string& ids : joined) {
    threads.emplace_back([&] { ids = signer.ids("m", "1", 1, facts.data(), 200); });
  }
  for (std::thread& thread : threads) thread.join();
  std::set<std::string> all;
  for (const std::string& ids : joined) {
    for (const std::string& id : split(ids)) all.insert(id);
  }
  CHECK(all.size() == 800);
}
