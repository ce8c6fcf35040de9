// A Node.js server with a WebSocket beside its pages.
const http = require("http");
const { WebSocketServer } = require("ws");

const port = Number(process.env.PORT || 8000);
const server = http.createServer((request, response) => {
  response.setHeader("content-type", "application/json");
  response.end(JSON.stringify({ node: process.version, path: request.url }));
});
const sockets = new WebSocketServer({ server, path: "/ws" });
sockets.on("connection", (socket) => socket.on("message", (data) => socket.send(`echo ${data}`)));
server.listen(port, () => console.log(`listening on ${port}`));
process.on("SIGTERM", () => server.close(() => process.exit(0)));
