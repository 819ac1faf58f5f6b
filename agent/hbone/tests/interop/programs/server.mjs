// The servers of applications.rs behind Node's HTTP/2 server.
import { readFileSync } from 'node:fs';
import { constants, createSecureServer } from 'node:http2';

const [certificate, key] = process.argv.slice(2).map((path) => readFileSync(path));
const server = createSecureServer({ cert: certificate, key });

server.on('stream', (stream, headers) => {
  if (headers[':method'] !== 'CONNECT') {
    stream.respond({ ':status': 405 }, { endStream: true });
    return;
  }
  const port = Number(headers[':authority'].split(':').pop());
  if (port === 5) {
    stream.respond({ ':status': 503 }, { endStream: true });
    return;
  }
  let [length, hash] = [0, 0x811c9dc5];
  let broken = false;
  stream.on('error', () => {});
  stream.on('aborted', () => { broken = true; });
  stream.on('close', () => {
    if (port === 4) return;
    console.log(broken || stream.rstCode !== 0 ? 'broken' : `whole ${length} ${hash >>> 0}`);
  });
  stream.respond({ ':status': 200 });
  if (port === 3) {
    stream.end(Buffer.from(Array.from({ length: 100000 }, (_, n) => n % 251)));
  }
  stream.on('data', (part) => {
    if (port === 4) {
      stream.close(constants.NGHTTP2_CONNECT_ERROR);
      return;
    }
    for (const byte of part) hash = Math.imul(hash ^ byte, 0x01000193);
    length += part.length;
    if (port === 1 && !stream.write(part)) {
      stream.pause();
      stream.once('drain', () => stream.resume());
    }
  });
  stream.on('end', () => {
    if (port === 1) stream.end();
    if (port === 2) stream.end(`${length} ${hash >>> 0}`);
  });
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
