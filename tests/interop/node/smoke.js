// KV, watch and leases of one server by the Node client etcd3: node smoke.js HOST:PORT
'use strict';

const assert = require('node:assert/strict');
const { once } = require('node:events');
const { Etcd3 } = require('etcd3');

const PATIENCE_MS = 20_000;
const SHORT_SECS = 2;

// What an emitter brings, as it comes.
class Heard {
  constructor() {
    this.found = [];
    this.wake = () => {};
  }

  push(what) {
    this.found.push(what);
    this.wake();
  }

  async next() {
    if (this.found.length === 0) {
      await new Promise((resolve, reject) => {
        const giveUp = setTimeout(() => reject(new Error('waited in vain')), PATIENCE_MS);
        this.wake = () => {
          clearTimeout(giveUp);
          resolve();
        };
      });
    }
    return this.found.shift();
  }
}

// Listens from before the watch is created, so that nothing is missed.
async function hear(builder) {
  const watcher = builder.watcher();
  const heard = new Heard();
  heard.cancel = () => watcher.cancel();
  const tell = kind => kv => heard.push([kind, kv.key.toString(), kv.value.toString(), Number(kv.mod_revision)]);
  watcher.on('put', tell('put')).on('delete', tell('delete')).on('error', error => heard.push(error));
  await once(watcher, 'connected');
  return heard;
}

const revisionOf = answer => Number(answer.header.revision);

// Put, get, history, delete, prefixes and txns.
async function kv(etcd) {
  const first = revisionOf(await etcd.put('js/a').value('one'));
  assert.equal((await etcd.put('js/a').value('two').getPrevious()).value.toString(), 'one');
  assert.equal(await etcd.get('js/a').string(), 'two');
  assert.equal(await etcd.get('js/a').revision(first).string(), 'one');
  assert.equal(await etcd.get('js/none').string(), null);
  assert.equal(await etcd.get('js/a').exists(), true);
  const [found] = (await etcd.get('js/a').exec()).kvs;
  assert.deepEqual([found.create_revision, found.mod_revision, found.version].map(Number), [first, first + 1, 2]);
  await assert.rejects(etcd.get('js/a').revision(first + 1000).exec(), /required revision is a future revision/);
  const bytes = Buffer.from([0, 255, 128]);
  await etcd.put(Buffer.from('js/bytes')).value(bytes);
  assert.deepEqual(await etcd.get('js/bytes').buffer(), bytes);

  for (let n = 0; n < 5; n++) {
    await etcd.put(`js/list/${n}`).value(9 - n);
  }
  assert.deepEqual(Object.values(await etcd.getAll().prefix('js/list/').sort('Value', 'Ascend').numbers()), [5, 6, 7, 8, 9]);
  const some = await etcd.getAll().prefix('js/list/').limit(2).exec();
  assert.deepEqual([some.kvs.length, some.more, Number(some.count)], [2, true, 5]);
  assert.deepEqual(await etcd.getAll().inRange({ start: 'js/list/1', end: 'js/list/4' }).keys(), ['js/list/1', 'js/list/2', 'js/list/3']);
  assert.equal(await etcd.getAll().prefix('js/list/').count(), 5);
  assert.deepEqual(await etcd.namespace('js/list/').get('3').string(), '6');

  const changed = await etcd
    .if('js/a', 'Value', '==', 'two').and('js/a', 'Version', '>', 1)
    .then(etcd.put('js/a').value('three'), etcd.get('js/a'))
    .else(etcd.delete().key('js/a'))
    .commit();
  assert.equal(changed.succeeded, true);
  assert.equal(changed.responses[1].response_range.kvs[0].value.toString(), 'three');
  const refused = await etcd.if('js/a', 'Create', '==', 0).then(etcd.put('js/a').value('x')).else(etcd.delete().key('js/list/0')).commit();
  assert.equal(refused.succeeded, false);
  assert.equal(Number(refused.responses[0].response_delete_range.deleted), 1);
  await Promise.all([1, 2, 3, 4].map(() => etcd.stm({ retries: 50 }).transact(async tx => {
    await tx.put('js/count').value(1 + Number((await tx.get('js/count').number()) || 0));
  })));
  assert.equal(await etcd.get('js/count').number(), 4);

  assert.equal(Number((await etcd.delete().key('js/a')).deleted), 1);
  assert.equal(Number((await etcd.delete().key('js/a')).deleted), 0);
  assert.equal((await etcd.delete().prefix('js/list/').getPrevious()).length, 4);
  assert.equal(await etcd.get('js/a').revision(first).string(), 'one');
}

// Prefixes, the past, filters, cancel, and what was compacted.
async function watch(etcd) {
  const start = revisionOf(await etcd.put('js/w/1').value('a'));
  const [prefix, past, deletes] = await Promise.all([
    hear(etcd.watch().prefix('js/w/').withPreviousKV()),
    hear(etcd.watch().key('js/w/1').startRevision(String(start))),
    hear(etcd.watch().prefix('js/w/').only('delete')),
  ]);
  await etcd.put('js/w/1').value('b');
  await etcd.put('js/w/2').value('c');
  await etcd.put('js/x').value('not watched');
  await etcd.delete().prefix('js/w/');
  const told = [
    ['put', 'js/w/1', 'b', start + 1],
    ['put', 'js/w/2', 'c', start + 2],
    ['delete', 'js/w/1', '', start + 4],
    ['delete', 'js/w/2', '', start + 4],
  ];
  for (const want of told) {
    assert.deepEqual(await prefix.next(), want);
  }
  for (const want of [['put', 'js/w/1', 'a', start], told[0], told[2]]) {
    assert.deepEqual(await past.next(), want);
  }
  for (const want of told.slice(2)) {
    assert.deepEqual(await deletes.next(), want);
  }

  // One watch is cancelled, the others of the stream go on.
  await past.cancel();
  await etcd.put('js/w/1').value('d');
  assert.deepEqual(await prefix.next(), ['put', 'js/w/1', 'd', start + 5]);
  await etcd.delete().key('js/w/1');
  assert.deepEqual(await deletes.next(), ['delete', 'js/w/1', '', start + 6]);
  assert.deepEqual(await prefix.next(), ['delete', 'js/w/1', '', start + 6]);
  await prefix.cancel();
  await deletes.cancel();
  assert.deepEqual([prefix.found, past.found, deletes.found], [[], [], []]);

  await etcd.kv.compact({ revision: start + 4 });
  const tooOld = await hear(etcd.watch().key('js/w/1').startRevision(String(start)));
  assert.match(String(await tooOld.next()), /Watcher canceled/);
}

// Grant, attach, renew, revoke, and the end of one that nobody renews, as a watch sees them.
async function leases(etcd) {
  const ends = await hear(etcd.watch().prefix('js/l/').only('delete'));
  const lease = etcd.lease(600, { autoKeepAlive: false });
  const id = await lease.grant();
  await lease.put('js/l/b').value('1');
  await lease.put('js/l/a').value('2');
  await etcd.put('js/l/c').value('3').lease(id);
  const revision = revisionOf(await etcd.put('js/l/c').value('detached'));
  const left = await etcd.leaseClient.leaseTimeToLive({ ID: id, keys: true });
  assert.deepEqual([Number(left.grantedTTL), left.keys.map(String).sort()], [600, ['js/l/a', 'js/l/b']]);
  assert.ok(Number(left.TTL) > 500 && Number(left.TTL) <= 600, left.TTL);
  assert.equal(Number((await lease.keepaliveOnce()).TTL), 600);
  assert.ok((await etcd.leaseClient.leaseLeases()).leases.some(one => one.ID === id));
  await lease.revoke();
  for (const key of ['js/l/a', 'js/l/b']) {
    assert.deepEqual(await ends.next(), ['delete', key, '', revision + 1]);
  }
  assert.equal(await etcd.get('js/l/c').string(), 'detached');
  assert.equal(Number((await etcd.leaseClient.leaseTimeToLive({ ID: id })).TTL), -1);
  await assert.rejects(etcd.put('js/l/d').value('4').lease(id).exec(), /requested lease not found/);

  // One is renewed by the client, another is not; a third is taken away from the client, which is told so.
  const lost = new Heard();
  const kept = etcd.lease(SHORT_SECS);
  const taken = etcd.lease(SHORT_SECS).on('lost', error => lost.push(error.name + error.message));
  await kept.put('js/l/kept').value('5');
  await taken.put('js/l/taken').value('6');
  const short = etcd.lease(SHORT_SECS, { autoKeepAlive: false });
  const put = revisionOf(await short.put('js/l/short').value('7'));
  await etcd.leaseClient.leaseRevoke({ ID: await taken.grant() });
  assert.deepEqual(await ends.next(), ['delete', 'js/l/taken', '', put + 1]);
  assert.match(await lost.next(), /Lease/);
  assert.deepEqual(await ends.next(), ['delete', 'js/l/short', '', put + 2]);
  assert.equal(await etcd.get('js/l/kept').string(), '5');
  await kept.revoke();
  assert.deepEqual(await ends.next(), ['delete', 'js/l/kept', '', put + 3]);
  await ends.cancel();
  assert.deepEqual([ends.found, lost.found], [[], []]);
}

async function main() {
  const etcd = new Etcd3({ hosts: `http://${process.argv[2]}` });
  assert.match((await etcd.maintenance.status()).version, /^3\./);
  for (const part of [kv, watch, leases]) {
    await part(etcd);
  }
  etcd.close();
}

main().catch(error => {
  console.error(error);
  process.exit(1);
});
