// A receiver made of somebody else's package: `node receive.cjs PACKAGE PORT`.
// Prints "ready", then one JSON text a message: its control id and what the package's own parser reads as OBX-5 and PID-5.
const net = require("node:net");
const [name, port] = [process.argv[2], Number(process.argv[3])];

// Packages listen everywhere; a test listens on loopback only.
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (options, ...rest) {
  const done = rest.find((one) => typeof one === "function");
  const wanted = typeof options === "object" ? options.port : options;
  return listen.call(this, { port: wanted, host: "127.0.0.1" }, () => {
    console.log("ready");
    if (done) done();
  });
};

function received(controlId, name, texts) {
  console.log(JSON.stringify({ control_id: controlId, name, texts }));
}

const receivers = {
  "simple-hl7"() {
    const app = require("simple-hl7").tcp();
    app.use((req, res, next) => {
      const texts = req.msg.segments.filter((s) => s.name === "OBX").map((s) => s.getField(5));
      received(req.msg.header.getField(8), req.msg.getSegment("PID").getField(5), texts);
      next();
    });
    app.use((req, res, next) => res.end());
    app.start(port);
  },
  "node-hl7-server"() {
    const { Server } = require("node-hl7-server");
    new Server({ bindAddress: "127.0.0.1" }).createInbound({ port }, async (req, res) => {
      const message = req.getMessage();
      const texts = [];
      message.get("OBX").forEach((obx) => {
        // A field of components has no text of its own here; of an ED the fifth is the document.
        texts.push(obx.get("5").toString() || obx.get("5.5").toString());
      });
      received(message.get("MSH.10").toString(), message.get("PID.5").toString(), texts);
      await res.sendResponse("AA");
    });
  },
  "@medplum/hl7"() {
    const { Hl7Server } = require("@medplum/hl7");
    new Hl7Server((connection) => {
      connection.addEventListener("message", ({ message }) => {
        const texts = message.getAllSegments("OBX").map((obx) => obx.getField(5).toString());
        const said = message.getSegment("PID").getField(5).toString();
        received(message.getSegment("MSH").getField(10).toString(), said, texts);
        connection.send(message.buildAck());
      });
    }).start(port);
  },
};

receivers[name]();
