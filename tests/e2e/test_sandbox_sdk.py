"""Koyeb's official sandbox SDK, unmodified, against the real thing: every public method of a sandbox."""

import asyncio
import time
import urllib.request

import pytest
from koyeb import AsyncSandbox, Sandbox
from koyeb.sandbox.exec import CommandStatus
from koyeb.sandbox.filesystem import SandboxFileNotFoundError, SandboxFilesystemError
from koyeb.sandbox.sandbox import SandboxError

from cloud import wait_for


pytestmark = pytest.mark.usefixtures("sdk_environment")


@pytest.fixture(scope="module")
def python_image(registry):
    return registry.image("fastapi")


@pytest.fixture(scope="module")
def box(python_image):
    sandbox = Sandbox.create(image=python_image, name="box", env={"GREETING": "hello"}, timeout=60)
    yield sandbox
    sandbox.delete()


def test_commands(box):
    result = box.exec("echo one; echo two >&2; exit 3")
    assert (result.stdout, result.stderr, result.exit_code) == ("one\n", "two\n", 3)
    assert result.status == CommandStatus.FAILED
    whole = box.exec("printf 'a\\n\\nb'", stream=False)
    assert (whole.stdout, whole.success) == ("a\n\nb", True)
    assert box.exec("python3 -c 'print(2 + 2)'").stdout == "4\n"
    assert box.exec("pwd; echo $GREETING $EXTRA", cwd="/tmp", env={"EXTRA": "x"}).stdout == "/tmp\nhello x\n"
    chunks, errors = [], []
    box.exec("for i in 1 2 3; do echo $i; done; echo e >&2", on_stdout=chunks.append, on_stderr=errors.append)
    assert ("".join(chunks), errors) == ("1\n2\n3\n", ["e\n"])
    assert "SANDBOX_SECRET" not in box.exec("env").stdout
    with pytest.raises(SandboxError, match="Invalid working directory|400"):
        box.exec("true", cwd="/nowhere", stream=False)


def test_a_command_whose_client_gave_up_is_killed(box):
    with pytest.raises(SandboxError):
        box.exec("echo $$ > /tmp/pid; setsid sleep 4321 & sleep 4321", timeout=2)
    look = "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep 432[1]' || true"
    wait_for("nothing is left", lambda: box.exec(look).stdout.strip() == "0")


def test_files(box, tmp_path):
    fs = box.filesystem
    fs.mkdir("/tmp/work/deep")
    fs.write_file("/tmp/work/a.txt", "héllo\n")
    assert fs.read_file("/tmp/work/a.txt").content == "héllo\n"
    fs.write_file("/tmp/work/empty", "")
    assert fs.read_file("/tmp/work/empty").content == ""
    fs.write_file("/tmp/work/b.bin", bytes(range(256)), encoding="base64")
    assert fs.read_file("/tmp/work/b.bin", encoding="base64").content == bytes(range(256))
    fs.write_files([{"path": f"/tmp/work/{n}", "content": n} for n in ("x", "y")])
    assert sorted(fs.ls("/tmp/work")) == ["a.txt", "b.bin", "deep", "empty", "x", "y"]
    assert fs.list_dir("/tmp/work/deep") == []
    assert (fs.exists("/tmp/work/x"), fs.is_file("/tmp/work/x"), fs.is_dir("/tmp/work/x")) == (True, True, False)
    fs.rename_file("/tmp/work/x", "/tmp/work/z")
    fs.move_file("/tmp/work/z", "/tmp/work/deep/z")
    assert not fs.exists("/tmp/work/x") and fs.read_file("/tmp/work/deep/z").content == "x"
    large = "0123456789abcdef" * (1 << 20)
    fs.write_file("/tmp/work/large", large)
    assert fs.read_file("/tmp/work/large").content == large
    local = tmp_path / "local"
    local.write_text("of the tests")
    fs.upload_file(str(local), "/tmp/work/up")
    fs.download_file("/tmp/work/up", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "of the tests"
    with fs.open("/tmp/work/opened", "w") as file:
        file.write("by a handle")
    with fs.open("/tmp/work/opened") as file:
        assert file.read() == "by a handle"
    fs.delete_file("/tmp/work/opened")
    fs.rm("/tmp/work/up")
    fs.rm("/tmp/work/deep", recursive=True)
    fs.delete_dir("/tmp/work")
    assert not fs.exists("/tmp/work")


def test_files_that_are_not_there(box):
    fs = box.filesystem
    for attempt in (fs.read_file, fs.delete_file, fs.list_dir, fs.rm):
        with pytest.raises(SandboxFileNotFoundError):
            attempt("/tmp/missing/file")
    with pytest.raises(SandboxFilesystemError):
        fs.write_file("/tmp/missing/file", "x")
    with pytest.raises(SandboxFilesystemError):
        fs.write_file("/etc/not-mine", "x")


def test_processes(box):
    process = box.launch_process("echo up; exec sleep 1000", cwd="/tmp", env={"A": "b"})
    short = box.launch_process("exit 4")

    def known():
        return {one.id: one for one in box.list_processes()}

    assert known()[process].status == "running" and known()[process].pid > 0
    wait_for("the short one has ended", lambda: known()[short].exit_code == 4)
    box.kill_process(process)
    wait_for("it is dead", lambda: known()[process].status == "killed")
    with pytest.raises(SandboxError):
        box.kill_process(process)
    box.launch_process("exec sleep 1001")
    assert box.kill_all_processes() == 1


def test_a_port(box):
    box.filesystem.write_file("/tmp/index.html", "from inside")
    box.launch_process("exec python3 -m http.server 8080 --directory /tmp")
    exposed = box.expose_port(8080)
    assert exposed.port == 8080

    def fetch():
        try:
            return urllib.request.urlopen(exposed.exposed_at + "/index.html", timeout=10).read()
        except OSError:
            return None

    assert wait_for("the server answers", fetch) == b"from inside"
    assert box.get_domain() in exposed.exposed_at
    # Another port takes its place at once.
    assert box.expose_port(8081).port == 8081
    box.unexpose_port()
    box.unexpose_port()
    assert box.is_healthy(), "healthy with nothing bound"
    box.kill_all_processes()


def test_found_again(box):
    again = Sandbox.get_from_id(box.id)
    assert again.exec("echo again").stdout == "again\n"
    assert box.id in [one.id for one in Sandbox.list()]
    assert box.id in [one.id for one in Sandbox.list(name="box")]
    with pytest.raises(SandboxError):
        Sandbox.get_from_id("8f3b7c52-0000-4000-8000-000000000000")


def test_the_life_of_one(cloud, python_image):
    box = Sandbox.create(
        image=python_image, name="life", timeout=60, enable_tcp_proxy=True, idle_timeout=0,
        config_files={"/etc/greeting": "hi"}, delete_after_delay=3600, enable_mesh=True, region="na",
        exposed_port_protocol="http2",
    )
    try:
        assert box.filesystem.read_file("/etc/greeting").content == "hi"
        assert box.wait_tcp_proxy_ready(timeout=30)
        host, port = box.get_tcp_proxy_info()
        box.launch_process("exec python3 -m http.server 9000 --directory /etc")
        box.expose_port(9000)

        def fetch():
            try:
                return urllib.request.urlopen(f"http://{host}:{port}/greeting", timeout=10).read()
            except OSError:
                return None

        assert wait_for("the server answers on the proxy port", fetch) == b"hi"
        box.update_lifecycle(delete_after_delay=7200)
        _, reply = cloud.call("GET", f"/v1/services/{box.service_id}")
        assert reply["service"]["life_cycle"]["delete_after_create"] == 7200
        box.update_network_policy(outbound_allowlist=["192.0.2.1"])
        assert box.wait_ready(timeout=60)
        assert box.exec("echo after").stdout == "after\n"
    finally:
        box.delete()
    wait_for("it is gone", lambda: cloud.call("GET", f"/v1/services/{box.service_id}")[0] == 404)
    wait_for("its app is gone", lambda: cloud.call("GET", f"/v1/apps/{box.app_id}")[0] == 404)


def test_its_own_program_decides_the_end(cloud, python_image):
    with Sandbox.create(
        image=python_image, name="own", timeout=60, entrypoint=["python3"], command="-c",
        args=["import time; print('own program', flush=True); time.sleep(1000)"],
    ) as box:
        said = box.exec("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout
        assert "own program" in said


def test_an_image_with_one_static_program(registry):
    with Sandbox.create(image=registry.image("hello"), name="scratch", timeout=60) as box:
        assert box.exec("busybox echo static").stdout == "static\n"
        box.filesystem.write_file("/tmp/f", "x")
        assert box.filesystem.read_file("/tmp/f").content == "x"


def test_privileged_is_refused(python_image, cloud):
    with pytest.raises(SandboxError, match="privileged instances are not allowed"):
        Sandbox.create(image=python_image, name="priv", privileged=True, timeout=60)

    def apps():
        return [app for app in cloud.call("GET", "/v1/apps?limit=100")[1]["apps"] if "priv" in app["name"]]

    wait_for("the SDK has taken its app away again", lambda: not apps())


def test_only_its_secret_opens_it(box):
    url, key = box._get_sandbox_url()
    for secret in ("wrong", ""):
        request = urllib.request.Request(f"{url}/list_processes")
        request.add_header("X-Routing-Key", key)
        request.add_header("Authorization", f"Bearer {secret}")
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request, timeout=10)
        assert error.value.code == 401


def test_the_async_twin(python_image, tmp_path, run_async):
    async def life():
        async with await AsyncSandbox.create(image=python_image, name="twin", timeout=60) as box:
            result = await box.exec("echo async; exit 2")
            assert (result.stdout, result.exit_code) == ("async\n", 2)
            assert (await box.exec("echo whole", stream=False)).stdout == "whole\n"
            many = await asyncio.gather(*(box.exec(f"echo {n}") for n in range(20)))
            assert [one.stdout for one in many] == [f"{n}\n" for n in range(20)]
            fs = box.filesystem
            await fs.mkdir("/tmp/d")
            await fs.write_file("/tmp/d/f", "text")
            assert (await fs.read_file("/tmp/d/f")).content == "text"
            assert await fs.ls("/tmp/d") == ["f"] == await fs.list_dir("/tmp/d")
            assert (await fs.exists("/tmp/d"), await fs.is_file("/tmp/d"), await fs.is_dir("/tmp/d")) == (
                True, False, True,
            )
            await fs.write_files([{"path": "/tmp/d/g", "content": "g"}])
            await fs.rename_file("/tmp/d/g", "/tmp/d/h")
            await fs.move_file("/tmp/d/h", "/tmp/h")
            await fs.download_file("/tmp/h", str(tmp_path / "h"))
            await fs.upload_file(str(tmp_path / "h"), "/tmp/i")
            async with fs.open("/tmp/i") as file:
                assert await file.read() == "g"
            await fs.rm("/tmp/i")
            await fs.delete_file("/tmp/h")
            await fs.delete_dir("/tmp/d")
            with pytest.raises(SandboxFileNotFoundError):
                await fs.read_file("/tmp/d/f")
            process = await box.launch_process("exec sleep 1000")
            assert [one.id for one in await box.list_processes()] == [process]
            await box.kill_process(process)
            assert await box.kill_all_processes() == 0
            assert (await box.expose_port(8080)).port == 8080
            await box.unexpose_port()
            assert await box.is_healthy()
            again = await AsyncSandbox.get_from_id(box.id)
            assert (await again.exec("echo again")).stdout == "again\n"
            assert box.id in [one.id for one in await AsyncSandbox.list()]
            await box.update_lifecycle(delete_after_inactivity=600)
            await box.update_network_policy()
            assert await box.wait_ready(timeout=60)

    run_async(life())


def test_ready_soon(python_image):
    """Not a promise, but a guard: no wait of whole seconds hides between create and the first command."""
    begun = time.monotonic()
    with Sandbox.create(image=python_image, name="soon", timeout=60) as box:
        assert box.exec("true").success
        assert time.monotonic() - begun < 20
