// Many producers, one consumer: a lock-free stack that the consumer reverses, so that messages come
// out in the order of posting. One eventfd write per burst.
#pragma once

#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "event.h"

namespace neve {

template <typename Message>
class Mailbox {
 public:
  Mailbox() = default;
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;
  ~Mailbox() { take(); }

  // For any thread.
  void post(Message message) {
    Node* node = std::make_unique<Node>(std::move(message)).release();  // the list owns it now
    Node* first = head_.load(std::memory_order_relaxed);
    // Release: pairs with the acquire in `take`, so that the consumer sees the message.
    do {
      node->next = first;
    } while (!head_.compare_exchange_weak(first, node, std::memory_order_release,
                                          std::memory_order_relaxed));
    // `node` may be freed by now. Only the poster that found the list empty wakes the consumer.
    if (first == nullptr) event_.set();
  }

  // For the consumer. Returns at least all messages posted before the event fired.
  std::vector<Message> take() {
    event_.clear();
    // Acquire: pairs with the release in `post`.
    Node* node = head_.exchange(nullptr, std::memory_order_acquire);
    Node* ordered = nullptr;
    while (node != nullptr) {
      Node* next = node->next;
      node->next = ordered;
      ordered = node;
      node = next;
    }
    std::vector<Message> messages;
    while (ordered != nullptr) {
      const std::unique_ptr<Node> owner(ordered);
      messages.push_back(std::move(owner->message));
      ordered = owner->next;
    }
    return messages;
  }

  int fd() const { return event_.fd(); }

 private:
  struct Node {
    explicit Node(Message&& m) : message(std::move(m)) {}
    Message message;
    Node* next = nullptr;
  };

  std::atomic<Node*> head_{nullptr};
  Event event_;
};

}  // namespace neve
