// Node's HTTP/2 client against the servers of applications.rs: the steps of `use_all`.
import { strict as assert } from 'node:assert';
import { randomBytes } from 'node:crypto';
import { connect, constants } from 'node:http2';

const session = connect(`https://127.0.0.1:${process.argv[2]}`, { rejectUnauthorized: false });

function open(port) {
  return new Promise((resolve, reject) => {
    const stream = session.request({ ':method': 'CONNECT', ':authority': `10.0.0.1:${port}` }, { endStream: false });
    stream.on('error', reject);
    stream.on('response', (headers) => resolve([headers[':status'], stream]));
  });
}

function readAll(stream) {
  return new Promise((resolve, reject) => {
    const parts = [];
    stream.on('data', (part) => parts.push(part));
    stream.on('end', () => resolve(Buffer.concat(parts)));
    stream.on('error', reject);
  });
}

async function echo(sent) {
  const [status, stream] = await open(1);
  assert.equal(status, 200);
  const received = readAll(stream);
  stream.end(sent);
  assert.ok((await received).equals(sent));
}

await echo(randomBytes(5000000));
const sent = randomBytes(1000003);
{
  const [, stream] = await open(2);
  const received = readAll(stream);
  stream.end(sent);
  assert.match((await received).toString(), /^1000003 \d+$/);
}
{
  const [, stream] = await open(3);
  const received = await readAll(stream);
  assert.ok(received.equals(Buffer.from(Array.from({ length: 100000 }, (_, n) => n % 251))));
  await new Promise((resolve) => { stream.on('close', resolve); stream.end(sent); });
  assert.equal(stream.rstCode, 0);
}
{
  const [, stream] = await open(4);
  stream.on('data', () => {});
  await new Promise((resolve) => { stream.on('close', resolve); stream.write('x'); });
  assert.equal(stream.rstCode, constants.NGHTTP2_CONNECT_ERROR);
}
{
  const [, stream] = await open(1);
  await new Promise((resolve) => { stream.once('data', resolve); stream.write('x'); });
  stream.removeAllListeners('error').on('error', () => {});
  stream.destroy(new Error('given up'));
}
assert.equal((await open(5))[0], 503);
const sizes = [0, 1, 16383, 16384, 16385, 65535, 65536, 300000];
await Promise.all(Array.from({ length: 64 }, (_, n) => echo(randomBytes(sizes[n % sizes.length]))));
session.close();
