/* What loopback TCP can move with nothing behind it: the ceiling of benchmarks/datapath.py.

   raw serve PORT SPAN_BYTES
     For each connection a thread that sends or swallows what it is asked for: requests are 16
     bytes, 'g' or 'p' and a decimal number of bytes. It walks over SPAN_BYTES of incompressible
     memory of its own, touched before. After a put it answers one byte.
   raw client PORT STREAMS BLOCK_BYTES BLOCKS
     Reads lines "get SECONDS IN_FLIGHT" and "put SECONDS IN_FLIGHT" from stdin and answers each
     with a line of JSON, as benchmarks/contestant_process.py does. A batch is BLOCKS blocks, shared among
     STREAMS sockets with a thread each; IN_FLIGHT batches are asked for ahead.

   No checksum, no protocol beyond the request, nothing allocated while it runs. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#define MAX_STREAMS 64
#define REQUEST_BYTES 16

static _Noreturn void die(const char *what) {
  perror(what);
  exit(1);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double cpu(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

/* Incompressible, touched, in huge pages where the system grants them. */
static char *memory(size_t bytes, uint64_t seed) {
  char *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) die("mmap");
  madvise(start, bytes, MADV_HUGEPAGE);
  uint64_t x = seed * 0x9e3779b97f4a7c15u | 1;
  for (size_t i = 0; i + 8 <= bytes; i += 8) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    memcpy(start + i, &x, 8);
  }
  return start;
}

/* What benchmarks/sockets.py varies, from the environment:
   RAW_CONGESTION  cubic unless named; "" leaves the system's default
   RAW_BUFFER      bytes of both socket buffers; 0: the kernel finds them
   RAW_NODELAY     0 leaves Nagle's delay on
   RAW_PIECE       most bytes of one recv; 0: as many as are missing
   RAW_WAITALL     1: recv returns when all of the piece is there
   RAW_ZEROCOPY    1: the kernel sends from our pages instead of a copy */
static const char *congestion = "cubic";
static long buffer_bytes, nodelay = 1, piece_bytes, waitall, zerocopy;

static long number(const char *name, long otherwise) {
  const char *text = getenv(name);
  return text ? atol(text) : otherwise;
}

static void read_settings(void) {
  const char *name = getenv("RAW_CONGESTION");
  if (name) congestion = name;
  buffer_bytes = number("RAW_BUFFER", 0);
  nodelay = number("RAW_NODELAY", 1);
  piece_bytes = number("RAW_PIECE", 0);
  waitall = number("RAW_WAITALL", 0);
  zerocopy = number("RAW_ZEROCOPY", 0);
}

static void tune(int fd) {
  int on = (int)nodelay, bytes = (int)buffer_bytes, one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (*congestion)
    setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, congestion, (socklen_t)strlen(congestion));
  if (bytes) {
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
  }
  if (zerocopy && setsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof one)) die("SO_ZEROCOPY");
}

static void receive(int fd, char *to, size_t bytes) {
  while (bytes) {
    size_t piece = piece_bytes && (size_t)piece_bytes < bytes ? (size_t)piece_bytes : bytes;
    ssize_t count = recv(fd, to, piece, waitall ? MSG_WAITALL : 0);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) die("recv");
    to += count;
    bytes -= (size_t)count;
  }
}

/* Takes the kernel's notes that it has done with our pages; without that it stops sending. */
static void drain_notes(int fd) {
  char control[128];
  struct msghdr message = {.msg_control = control, .msg_controllen = sizeof control};
  while (recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) >= 0)
    message.msg_controllen = sizeof control;
}

static void transmit(int fd, const char *from, size_t bytes) {
  int large = zerocopy && bytes >= 65536;
  while (bytes) {
    ssize_t count = send(fd, from, bytes, MSG_NOSIGNAL | (large ? MSG_ZEROCOPY : 0));
    if (large) drain_notes(fd);
    if (count < 0 && (errno == EINTR || (large && errno == ENOBUFS))) continue;
    if (count <= 0) die("send");
    from += count;
    bytes -= (size_t)count;
  }
}

/* ---- the other end ---- */

static size_t span_bytes;

static void *serve(void *argument) {
  int fd = (int)(intptr_t)argument;
  char *span = memory(span_bytes, (uint64_t)fd + 1), request[REQUEST_BYTES + 1] = {0};
  size_t at = 0;
  tune(fd);
  while (recv(fd, request, REQUEST_BYTES, MSG_WAITALL) == REQUEST_BYTES) {
    size_t left = strtoull(request + 1, NULL, 10);
    while (left) {
      size_t part = span_bytes - at < left ? span_bytes - at : left;
      if (request[0] == 'g')
        transmit(fd, span + at, part);
      else
        receive(fd, span + at, part);
      left -= part;
      at = (at + part) % span_bytes;
    }
    if (request[0] == 'p') transmit(fd, "!", 1);
  }
  close(fd);
  munmap(span, span_bytes);
  return NULL;
}

static _Noreturn void serve_all(uint16_t port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
  int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(listener, (struct sockaddr *)&address, sizeof address)) die("bind");
  if (listen(listener, MAX_STREAMS)) die("listen");
  for (;;) {
    pthread_t thread;
    int fd = accept(listener, NULL, NULL);
    if (fd < 0) die("accept");
    if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)fd)) die("pthread_create");
    pthread_detach(thread);
  }
}

/* ---- our end ---- */

struct stream {
  int fd;
  char *memory; /* its share of each batch, `in_flight` of them one behind the other */
  size_t share, moved;
};

static struct stream streams[MAX_STREAMS];
static pthread_barrier_t start_line;
static double deadline;
static char kind;
static int in_flight;

static void request(struct stream *s) {
  char text[REQUEST_BYTES + 1];
  snprintf(text, sizeof text, "%c%015zu", kind, s->share);
  transmit(s->fd, text, REQUEST_BYTES);
}

static void *move(void *argument) {
  struct stream *s = argument;
  char done;
  int asked = 0;
  pthread_barrier_wait(&start_line);
  if (kind == 'g')
    for (; asked < in_flight; asked++) request(s);
  for (int n = 0; n == 0 || asked || now() < deadline; n++) {
    char *part = s->memory + (size_t)(n % in_flight) * s->share;
    if (kind == 'g') {
      receive(s->fd, part, s->share);
      asked--;
      if (now() < deadline) request(s), asked++;
    } else {
      request(s);
      transmit(s->fd, part, s->share);
      if (++asked == in_flight || now() >= deadline)
        for (; asked; asked--) receive(s->fd, &done, 1);
    }
    s->moved += s->share;
  }
  return NULL;
}

static void measure(int count, double seconds) {
  pthread_t threads[MAX_STREAMS];
  size_t moved = 0;
  pthread_barrier_init(&start_line, NULL, (unsigned)count + 1);
  for (int i = 0; i < count; i++) {
    streams[i].moved = 0;
    if (pthread_create(&threads[i], NULL, move, &streams[i])) die("pthread_create");
  }
  double cpu_before = cpu(), began = now();
  deadline = began + seconds;
  pthread_barrier_wait(&start_line);
  for (int i = 0; i < count; i++) {
    pthread_join(threads[i], NULL);
    moved += streams[i].moved;
  }
  double wall_s = now() - began;
  printf("{\"bytes\": %zu, \"wall_s\": %.6f, \"cpu_s\": %.6f, \"batch_s\": []}\n", moved, wall_s,
         cpu() - cpu_before);
  fflush(stdout);
}

static int client(uint16_t port, int count, size_t block, size_t blocks) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
  char line[128], verb[8];
  double seconds;
  const int most_in_flight = 4;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  for (int i = 0; i < count; i++) {
    struct stream *s = &streams[i];
    s->share = block * blocks / (size_t)count;
    s->memory = memory(s->share * (size_t)most_in_flight, (uint64_t)i + 100);
    s->fd = socket(AF_INET, SOCK_STREAM, 0);
    tune(s->fd);
    if (connect(s->fd, (struct sockaddr *)&address, sizeof address)) die("connect");
  }
  printf("{\"ready\": true}\n");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    if (sscanf(line, "%7s %lf %d", verb, &seconds, &in_flight) != 3) break;
    if (in_flight < 1 || in_flight > most_in_flight) in_flight = 1;
    kind = verb[0];
    measure(count, seconds);
  }
  return 0;
}

int main(int count, char **words) {
  read_settings();
  if (count == 4 && !strcmp(words[1], "serve")) {
    span_bytes = strtoull(words[3], NULL, 10);
    serve_all((uint16_t)atoi(words[2]));
  }
  if (count == 6 && !strcmp(words[1], "client") && atoi(words[3]) <= MAX_STREAMS)
    return client((uint16_t)atoi(words[2]), atoi(words[3]), strtoull(words[4], NULL, 10),
                  strtoull(words[5], NULL, 10));
  fprintf(stderr, "usage: raw serve PORT SPAN_BYTES | raw client PORT STREAMS BLOCK_BYTES BLOCKS\n");
  return 2;
}
