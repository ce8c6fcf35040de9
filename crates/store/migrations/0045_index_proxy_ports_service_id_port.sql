CREATE UNIQUE INDEX IF NOT EXISTS proxy_ports_service_id_port ON proxy_ports (service_id, port);
