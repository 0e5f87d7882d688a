"""The peer of the bench: python-hl7's MLLP server, one row and a commit for each message, then its ACK."""

import asyncio
import sys

import psycopg
from hl7.mllp import HL7StreamReader, HL7StreamWriter, start_hl7_server


async def serve(port: int, conninfo: str) -> None:
    """Serve until killed."""
    database = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
    turn = asyncio.Lock()

    async def talk(reader: HL7StreamReader, writer: HL7StreamWriter) -> None:
        try:
            while True:
                message = await reader.readmessage()
                async with turn:
                    await database.execute(
                        "INSERT INTO bench_peer (raw) VALUES (%s)", (str(message),), prepare=True
                    )
                writer.writemessage(message.create_ack())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async with await start_hl7_server(talk, port=port, host="127.0.0.1", encoding="utf-8") as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2]))
