// An eventfd, for poll or epoll. For any thread.
#pragma once

#include "descriptor.h"

namespace neve {

class Event {
 public:
  Event();  // throws std::system_error if the process has no descriptors left
  int fd() const { return fd_.get(); }
  void set() noexcept;
  void clear() noexcept;

 private:
  Descriptor fd_;
};

}  // namespace neve
