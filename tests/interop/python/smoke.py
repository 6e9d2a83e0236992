"""KV, watch and leases of one server by the Python client pyetcd: smoke.py HOST:PORT"""

import queue
import sys
import threading

import grpc
import pyetcd
from pyetcd import etcdrpc, events, exceptions

PATIENCE_SECS = 20
SHORT_SECS = 2


class Heard:
    """What a watch brings, as it comes."""

    def __init__(self, etcd, key, **options):
        self.found = queue.Queue()
        iterator, self.cancel = etcd.watch(key, **options)
        self.thread = threading.Thread(target=self.listen, args=(iterator,), daemon=True)
        self.thread.start()

    def listen(self, iterator):
        try:
            for event in iterator:
                kind = "put" if isinstance(event, events.PutEvent) else "delete"
                self.found.put((kind, event.key, event.value, event.mod_revision))
        except Exception as error:
            self.found.put(error)

    def next(self):
        return self.found.get(timeout=PATIENCE_SECS)

    def stop(self):
        self.cancel()
        self.thread.join(PATIENCE_SECS)
        assert not self.thread.is_alive(), "a cancelled watch goes on"
        assert self.found.empty(), self.found.get()


def same(got, want):
    assert got == want, f"{got!r} is not {want!r}"


def kv(etcd):
    """Put, get, history, delete, prefixes and txns."""
    first = etcd.put("py/a", "one").header.revision
    second = etcd.put("py/a", "two", prev_kv=True)
    same(second.header.revision, first + 1)
    same(second.prev_kv.value, b"one")
    value, meta = etcd.get("py/a")
    same((value, meta.create_revision, meta.mod_revision, meta.version), (b"two", first, first + 1, 2))
    same(etcd.get("py/a", revision=first)[0], b"one")
    same(etcd.get("py/none"), (None, None))
    try:
        etcd.get_response("py/a", revision=first + 1000)
        raise AssertionError("the future was read")
    except grpc.RpcError as error:
        same(error.details(), "etcdserver: mvcc: required revision is a future revision")

    for n in range(5):
        etcd.put(f"py/list/{n}", str(9 - n))
    by_value = etcd.get_prefix("py/list/", sort_order="ascend", sort_target="value")
    same([value for value, _ in by_value], [b"5", b"6", b"7", b"8", b"9"])
    some = etcd.get_prefix_response("py/list/", limit=2)
    same(([kv.key for kv in some.kvs], some.more, some.count), ([b"py/list/0", b"py/list/1"], True, 5))
    same(len(list(etcd.get_range("py/list/1", "py/list/4"))), 3)
    same(etcd.get_prefix_response("py/list/", keys_only=True).kvs[0].value, b"")

    changed, answers = etcd.transaction(
        compare=[etcd.transactions.value("py/a") == "two", etcd.transactions.version("py/a") > 1],
        success=[etcd.transactions.put("py/a", "three"), etcd.transactions.get("py/a")],
        failure=[etcd.transactions.delete("py/a")],
    )
    same((changed, answers[1][0][0]), (True, b"three"))
    changed, answers = etcd.transaction(
        compare=[etcd.transactions.create("py/a") == 0],
        success=[],
        failure=[
            etcd.transactions.delete("py/list/0"),
            etcd.transactions.txn(compare=[], success=[etcd.transactions.put("py/b", "nested")], failure=[]),
        ],
    )
    same((changed, answers[0].response_delete_range.deleted), (False, 1))
    same(etcd.get("py/b")[0], b"nested")
    same((etcd.put_if_not_exists("py/b", "x"), etcd.replace("py/b", "nested", "swapped")), (False, True))

    same((etcd.delete("py/a"), etcd.delete("py/a")), (True, False))
    same(etcd.delete("py/b", prev_kv=True, return_response=True).prev_kvs[0].value, b"swapped")
    same(etcd.delete_prefix("py/list/").deleted, 4)
    same(etcd.get("py/a", revision=first)[0], b"one")


def watch(etcd):
    """Prefixes, the past, filters, cancel, and what was compacted."""
    start = etcd.put("py/w/1", "a").header.revision
    prefix = Heard(etcd, "py/w/", range_end="py/w0", prev_kv=True)
    past = Heard(etcd, "py/w/1", start_revision=start)
    deletes = Heard(etcd, "py/w/", range_end="py/w0", filters=[etcdrpc.WatchCreateRequest.NOPUT])
    same(past.next(), ("put", b"py/w/1", b"a", start))
    etcd.put("py/w/1", "b")
    etcd.put("py/w/2", "c")
    etcd.put("py/x", "not watched")
    etcd.delete_prefix("py/w/")
    told = [
        ("put", b"py/w/1", b"b", start + 1),
        ("put", b"py/w/2", b"c", start + 2),
        ("delete", b"py/w/1", b"", start + 4),
        ("delete", b"py/w/2", b"", start + 4),
    ]
    same([prefix.next() for _ in told], told)
    same([past.next(), past.next()], [told[0], told[2]])
    same([deletes.next(), deletes.next()], told[2:])

    # One watch is cancelled, the others of the stream go on.
    past.stop()
    etcd.put("py/w/1", "d")
    same(prefix.next(), ("put", b"py/w/1", b"d", start + 5))
    etcd.delete("py/w/1")
    same(deletes.next(), ("delete", b"py/w/1", b"", start + 6))
    prefix.next()
    prefix.stop()
    deletes.stop()
    again = Heard(etcd, "py/w/", range_end="py/w0", start_revision=start + 1)
    same([again.next() for _ in told], told)
    again.cancel()

    etcd.compact(start + 4)
    too_old = Heard(etcd, "py/w/1", start_revision=start)
    error = too_old.next()
    assert isinstance(error, exceptions.RevisionCompactedError), error
    same(error.compacted_revision, start + 4)


def leases(etcd):
    """Grant, attach, renew, revoke, and the end of one that nobody renews, as a watch sees them."""
    ends = Heard(etcd, "py/l/", range_end="py/l0", filters=[etcdrpc.WatchCreateRequest.NOPUT])
    lease = etcd.lease(600)
    same(lease.ttl, 600)
    etcd.put("py/l/b", "1", lease=lease)
    etcd.put("py/l/a", "2", lease=lease)
    revision = etcd.put("py/l/c", "3", lease=lease.id).header.revision
    etcd.put("py/l/c", "detached")
    same((sorted(lease.keys), lease.granted_ttl), ([b"py/l/a", b"py/l/b"], 600))
    assert 500 < lease.remaining_ttl <= 600, lease.remaining_ttl
    same([answer.TTL for answer in lease.refresh()], [600])
    lease.revoke()
    same([ends.next(), ends.next()], [("delete", key, b"", revision + 2) for key in (b"py/l/a", b"py/l/b")])
    same((lease.remaining_ttl, [answer.TTL for answer in lease.refresh()]), (-1, [0]))
    same(etcd.get("py/l/c")[0], b"detached")
    try:
        etcd.put("py/l/d", "4", lease=lease)
        raise AssertionError("a lease that is gone took a key")
    except grpc.RpcError as error:
        same(error.details(), "etcdserver: requested lease not found")

    short = etcd.lease(SHORT_SECS, lease_id=77)
    same((short.id, short.ttl), (77, SHORT_SECS))
    put = etcd.put("py/l/short", "5", lease=short)
    same(ends.next(), ("delete", b"py/l/short", b"", put.header.revision + 1))
    same(short.remaining_ttl, -1)
    ends.stop()


def main():
    host, port = sys.argv[1].rsplit(":", 1)
    etcd = pyetcd.client(host=host, port=int(port), timeout=PATIENCE_SECS)
    assert etcd.status().version.startswith("3."), etcd.status().version
    for part in (kv, watch, leases):
        part(etcd)
    etcd.close()


main()
