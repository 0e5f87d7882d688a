// Asks a worklist, then reports a performed step: node ask.js PORT CALLED CALLING KEYS(JSON). Prints one JSON object.
const dimse = require("dcmjs-dimse");
const { Client, Dataset } = dimse;
const { CFindRequest, NCreateRequest, NSetRequest } = dimse.requests;
const { SopClass } = dimse.constants;

dimse.log.level = "error";
const [port, called, calling, keys] = process.argv.slice(2);
const said = { answers: [], statuses: [] };

function send(request, each) {
  return new Promise((resolve, reject) => {
    const client = new Client();
    request.on("response", (response) => each(response));
    client.addRequest(request);
    client.on("networkError", reject);
    client.on("closed", resolve);
    client.send("127.0.0.1", Number(port), calling, called);
  });
}

async function main() {
  const { step, ...outer } = JSON.parse(keys);
  const request = CFindRequest.createWorklistFindRequest({ ...outer, ScheduledProcedureStepSequence: [step] });
  await send(request, (response) => {
    if (response.hasDataset()) said.answers.push(response.getDataset().getElements());
    else said.statuses.push(response.getStatus());
  });
  const found = said.answers[0];
  if (found) {
    const item = found.ScheduledProcedureStepSequence[0];
    const uid = Dataset.generateDerivedUid();
    const begun = new NCreateRequest(SopClass.ModalityPerformedProcedureStep, uid);
    begun.setDataset(
      new Dataset({
        PatientName: found.PatientName,
        PatientID: found.PatientID,
        PatientBirthDate: "",
        PatientSex: "",
        ScheduledStepAttributesSequence: [
          {
            StudyInstanceUID: found.StudyInstanceUID,
            AccessionNumber: found.AccessionNumber,
            RequestedProcedureID: found.RequestedProcedureID,
            ScheduledProcedureStepID: item.ScheduledProcedureStepID,
          },
        ],
        PerformedProcedureStepID: "PPS1",
        PerformedStationAETitle: calling,
        PerformedProcedureStepStartDate: "20260302",
        PerformedProcedureStepStartTime: "091500",
        PerformedProcedureStepStatus: "IN PROGRESS",
        Modality: item.Modality,
      })
    );
    await send(begun, (response) => said.statuses.push(response.getStatus()));
    const done = new NSetRequest(SopClass.ModalityPerformedProcedureStep, uid);
    done.setDataset(
      new Dataset({
        PerformedProcedureStepStatus: "COMPLETED",
        PerformedProcedureStepEndDate: "20260302",
        PerformedProcedureStepEndTime: "093000",
        PerformedSeriesSequence: [{ SeriesInstanceUID: `${uid}.1`, ProtocolName: "Head" }],
      })
    );
    await send(done, (response) => said.statuses.push(response.getStatus()));
  }
  console.log(JSON.stringify(said));
}

main().catch((error) => {
  console.error(String(error));
  process.exit(1);
});
