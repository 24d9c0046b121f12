// What one client may do how often: token buckets, and the strikes of pings that come too soon.
#pragma once

#include <algorithm>
#include <limits>

#include "clock.h"

namespace lane {

// Allows `rate` per second on average, `burst` at once.
class TokenBucket {
 public:
  TokenBucket(double rate, double burst, Seconds now)
      : rate_(rate), burst_(burst), tokens_(burst), filled_(now) {}

  // False: that was one too many.
  bool take(Seconds now) {
    tokens_ = std::min(burst_, tokens_ + (now - filled_) * rate_);
    filled_ = now;
    if (tokens_ < 1) return false;
    tokens_ -= 1;
    return true;
  }
  // Seconds until there is one more, after one too many.
  Seconds wait() const { return (1 - tokens_) / rate_; }

 private:
  double rate_;
  double burst_;
  double tokens_;
  Seconds filled_;
};

// A client's pings, as gRPC judges them: one sooner after the last than `interval` is a strike,
// unless something was answered in between.
// https://github.com/grpc/proposal/blob/master/A8-client-side-keepalive.md
class PingStrikes {
 public:
  PingStrikes(Seconds interval, int most) : interval_(interval), most_(most) {}

  // False: too many.
  bool ping(Seconds now) {
    if (now - last_ < interval_) ++strikes_;
    last_ = now;
    return strikes_ <= most_;
  }
  void answered() {
    strikes_ = 0;
    last_ = -std::numeric_limits<Seconds>::infinity();
  }

 private:
  Seconds interval_;
  int most_;
  int strikes_ = 0;
  Seconds last_ = -std::numeric_limits<Seconds>::infinity();
};

}  // namespace lane
