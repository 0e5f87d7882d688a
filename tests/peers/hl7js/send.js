// node send.js KIND PORT: reads a JSON list of messages, sends each, prints the list of [MSA-1, MSA-2].
const texts = JSON.parse(require('fs').readFileSync(0, 'utf8'));
const [kind, port] = [process.argv[2], Number(process.argv[3])];
const answers = [];

function note(text) {
  const msa = text.split(/\r\n|\r|\n/).find((line) => line.startsWith('MSA')).split('|');
  answers.push([msa[1], msa[2]]);
  if (answers.length === texts.length) {
    console.log(JSON.stringify(answers));
    process.exit(0);
  }
}

function simple() {
  const hl7 = require('simple-hl7');
  const parser = new hl7.Parser({ segmentSeperator: '\r' });
  const client = hl7.Server.createTcpClient({
    host: '127.0.0.1',
    port,
    keepalive: true,
    callback: (error, ack) => {
      if (error) throw error;
      note(ack.toString());
      // it takes the next message only after this callback has returned
      setImmediate(() => client.send(parser.parse(texts[answers.length])));
    },
  });
  client.connect(() => client.send(parser.parse(texts[0])));
}

async function medplum() {
  const { Hl7Client } = require('@medplum/hl7');
  const { Hl7Message } = require('@medplum/core');
  const client = new Hl7Client({ host: '127.0.0.1', port });
  await client.connect();
  for (const text of texts) note((await client.sendAndWait(Hl7Message.parse(text))).toString());
}

async function node() {
  const { Client, Message } = require('node-hl7-client');
  const client = new Client({ host: '127.0.0.1' });
  let next;
  const connection = client.createConnection({ port }, async (answer) => {
    note(answer.getMessage().toString());
    next();
  });
  for (const text of texts) {
    const answered = new Promise((resolve) => (next = resolve));
    await connection.sendMessage(new Message({ text }));
    await answered;
  }
}

({ 'simple-hl7': simple, '@medplum/hl7': medplum, 'node-hl7-client': node })[kind]();
