// A sender made of somebody else's package: `node send.cjs PACKAGE PORT FILE`.
// Sends the message in the file (segments ended by CR, UTF-8) and prints what the package reads in the acknowledgement.
const fs = require("node:fs");
const [name, port, file] = [process.argv[2], Number(process.argv[3]), process.argv[4]];
const text = fs.readFileSync(file, "utf-8");

function answered(code, controlId) {
  console.log(JSON.stringify({ code, control_id: controlId }));
  process.exit(0);
}

const senders = {
  "simple-hl7"() {
    const hl7 = require("simple-hl7");
    const message = new hl7.Parser().parse(text);
    hl7.Server.createTcpClient("127.0.0.1", port).send(message, (error, ack) => {
      if (error) throw error;
      const msa = ack.getSegment("MSA");
      answered(msa.getField(1), msa.getField(2));
    });
  },
  async "node-hl7-client"() {
    const { Client, Message } = require("node-hl7-client");
    const connection = new Client({ host: "127.0.0.1" }).createConnection({ port }, (res) => {
      const ack = res.getMessage();
      answered(ack.get("MSA.1").toString(), ack.get("MSA.2").toString());
    });
    await connection.sendMessage(new Message({ text }));
  },
  async "@medplum/hl7"() {
    const { Hl7Client } = require("@medplum/hl7");
    const { Hl7Message } = require("@medplum/core");
    const client = new Hl7Client({ host: "127.0.0.1", port });
    const ack = await client.sendAndWait(Hl7Message.parse(text));
    const msa = ack.getSegment("MSA");
    answered(msa.getField(1).toString(), msa.getField(2).toString());
  },
};

senders[name]();
