const express = require('express');
const app = express();
app.get('/', (req, res) => res.send(`node: express ${require('express/package.json').version}\n`));
const server = app.listen(process.env.PORT, () => console.log('listening'));
process.on('SIGTERM', () => server.close(() => process.exit(0)));
