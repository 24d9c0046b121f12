// Bearer tokens in the lane: which are good, what is refused before a body is read, and how many
// calls there may be.
#include <doctest/doctest.h>

#include <atomic>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "talking.h"
#include "tokens.h"
#include "words.h"

using namespace lane;

namespace {

const std::string secret = "0123456789abcdef0123456789abcdef";
const std::string other = "fedcba9876543210fedcba9876543210";
// By sha256sum.
const std::string sha256 = "3eb1bd439947eb762998e566ccc2e099c791118b2f40579cc4f7da2b5061b7f9";
const std::string other_sha256 = "4ba68aa8767bde72e8c798ee82d1275291cea73e72ad74d35ecf48e41386eb82";

Digest digest(const std::string& hex) {
  Digest digest;
  const auto bytes = from_hex(hex);
  std::memcpy(digest.data(), bytes.data(), digest.size());
  return digest;
}

// `ours` may infer, and `theirs` may not.
std::vector<Grant> grants(double rate = 0, double burst = 1) {
  return {{"ours", digest(sha256), true, rate, burst}, {"theirs", digest(other_sha256), false}};
}

std::string sent(const std::string& token) { return "Bearer " + token; }

Reason why(Tokens& tokens, KnownToken& known, const std::string& header, Seconds now = 0) {
  const auto refusal = tokens.refuse(header, known, now);
  REQUIRE(refusal);
  return refusal->reason;
}

Headers with_token(const std::string& token) {
  return with(infer_headers(), "authorization", sent(token));
}

std::string status_of(const Received& received) {
  const auto& fields = received.trailers.empty() ? received.headers : received.trailers;
  const auto found = fields.find("grpc-status");
  return found == fields.end() ? "(none)" : found->second;
}

}  // namespace

TEST_CASE("A header has a token after its scheme, which may be written in any case") {
  CHECK(bearer("Bearer abc") == "abc");
  CHECK(bearer("bEARER   abc  ") == "abc");
  for (const char* none : {"", "Bearer", "Bearer ", "Bearer    ", "Basic abc", "Bearerabc", "abc"})
    CHECK(bearer(none).empty());
}

TEST_CASE("Without tokens nobody needs one, and with none of them yet nobody has a good one") {
  KnownToken known;
  CHECK(!Tokens(false).refuse("", known, 0));
  Tokens tokens(true);
  CHECK(why(tokens, known, sent(secret)) == Reason::unauthenticated);
}

TEST_CASE("A token is good wherever it stands, and only with the role") {
  Tokens tokens(true);
  tokens.set(grants());
  KnownToken known;
  for (int again = 0; again < 2; ++again) {
    CHECK(!tokens.refuse(sent(secret), known, 0));
    CHECK(why(tokens, known, sent(other)) == Reason::not_allowed);
    CHECK(why(tokens, known, sent(secret + "0")) == Reason::unauthenticated);
    CHECK(why(tokens, known, sent(secret.substr(1))) == Reason::unauthenticated);
    CHECK(why(tokens, known, "") == Reason::unauthenticated);
  }
}

TEST_CASE("What a connection is known by is no good any more once there are other tokens") {
  Tokens tokens(true);
  tokens.set(grants());
  KnownToken known;
  CHECK(!tokens.refuse(sent(secret), known, 0));
  tokens.set({{"theirs", digest(other_sha256), true}});
  CHECK(why(tokens, known, sent(secret)) == Reason::unauthenticated);
  CHECK(!tokens.refuse(sent(other), known, 0));
}

TEST_CASE("A token may be used as often as its rate allows, whoever asks") {
  Tokens tokens(true);
  tokens.set(grants(10, 2));
  KnownToken known;
  const Seconds now = lane::now() + 10;
  CHECK(!tokens.refuse(sent(secret), known, now));
  CHECK(tokens.wait("ours", now) == 0);
  const auto refusal = tokens.refuse(sent(secret), known, now);
  REQUIRE(refusal);
  CHECK(refusal->code == Code::resource_exhausted);
  CHECK(refusal->reason == Reason::rate_limited);
  CHECK(refusal->retry_after == doctest::Approx(0.1));
  CHECK(tokens.wait("ours", now) == doctest::Approx(0.1));
  CHECK(tokens.wait("theirs", now) == 0);
  CHECK(tokens.wait("nobody", now) == 0);
  CHECK(!tokens.refuse(sent(secret), known, now + 0.11));
}

TEST_CASE("New tokens give nobody more calls who was there before") {
  Tokens tokens(true);
  tokens.set(grants(1e-3, 1));
  CHECK(tokens.wait("ours", lane::now()) == 0);
  tokens.set(grants(1e-3, 1));
  CHECK(tokens.wait("ours", lane::now()) > 0);
  tokens.set(grants(1e-3, 5));
  CHECK(tokens.wait("ours", lane::now()) == 0);
}

TEST_CASE("Tokens may change while calls are looked at") {
  Tokens tokens(true);
  tokens.set(grants(1e9, 1e9));
  std::atomic<bool> over{false};
  std::thread changing([&] {
    for (int i = 0; i < 2000; ++i) tokens.set(grants(1e9, 1e9));
    over = true;
  });
  std::thread counting([&] {
    while (!over) CHECK(tokens.wait("ours", lane::now()) == 0);
  });
  KnownToken known;
  while (!over) {
    CHECK(!tokens.refuse(sent(secret), known, lane::now()));
    CHECK(why(tokens, known, sent(other)) == Reason::not_allowed);
  }
  changing.join();
  counting.join();
}

TEST_CASE("A call without a good token is refused when its headers are there") {
  Talk talk({}, {}, 100, true);
  talk.serving.service->tokens.set(grants());
  const auto none = talk.client.request(infer_headers(), "", false);
  const auto wrong = talk.client.request(with_token(secret + "1"), "", false);
  const auto another = talk.client.request(with_token(other), "", false);
  Headers two = with_token(secret);
  two.push_back({"authorization", sent(secret)});
  const auto twice = talk.client.request(two, "", false);
  talk.exchange();
  CHECK(status_of(talk.got(none)) == "16");
  CHECK(talk.got(none).headers.at("grpc-message") ==
        "this needs a token: authorization: Bearer TOKEN");
  CHECK(status_of(talk.got(wrong)) == "16");
  CHECK(talk.got(wrong).headers.at("grpc-message") == "the token is not known");
  CHECK(status_of(talk.got(another)) == "7");
  CHECK(talk.got(another).headers.at("grpc-message") == "the token has not the role infer");
  CHECK(status_of(talk.got(twice)) == "16");
  for (const auto id : {none, wrong, another, twice}) CHECK(talk.got(id).ended);
  CHECK(talk.log.calls.empty());
}

TEST_CASE("A call with a good token is answered, beside others that have none") {
  Talk talk({}, {}, 100, true);
  talk.serving.service->tokens.set(grants());
  std::vector<std::int32_t> good;
  std::vector<std::int32_t> bad;
  for (int i = 0; i < 20; ++i) {
    good.push_back(talk.client.infer(times_request({2.0f}), with_token(secret)));
    bad.push_back(talk.client.infer(times_request({2.0f}), with_token(i % 2 ? other : "x")));
  }
  talk.exchange();
  talk.answer(20);
  for (const auto id : good) CHECK(last_floats(talk.got(id).body, 1)[0] == 6.0f);
  for (const auto id : bad) CHECK(talk.got(id).body.empty());
}

TEST_CASE("Beyond its token's rate a call is told when to come again") {
  Talk talk({}, {}, 100, true);
  talk.serving.service->tokens.set(grants(0.5, 2));
  talk.now = lane::now() + 100;
  std::vector<std::int32_t> ids;
  for (int i = 0; i < 3; ++i) {
    ids.push_back(talk.client.infer(times_request({1.0f}), with_token(secret)));
  }
  talk.exchange();
  talk.answer(2);
  CHECK(status_of(talk.got(ids[1])) == "0");
  CHECK(status_of(talk.got(ids[2])) == "8");
  CHECK(talk.got(ids[2]).headers.at("grpc-retry-pushback-ms") == "2000");
}

TEST_CASE("What the lane does not answer itself is passed on with its token, looked at or not") {
  Talk talk({}, {}, 100, true);
  talk.serving.service->tokens.set(grants());
  const Headers ready = with(with_token("x"), ":path", "/x.Y/Z");
  const auto id = talk.client.request(ready, "");
  talk.exchange();
  CHECK(talk.log.calls.at(id).header("authorization") == "Bearer x");
}
