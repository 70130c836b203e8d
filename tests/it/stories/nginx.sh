# nginx as an instance of Marathon, with a configuration ($1) that knows which task it is, in a folder that ends with it:
# it has a view of the file system of its own.
mount -t tmpfs nginx /mnt && cd /mnt && mkdir files temp && sed "s/TASK/$MESOS_TASK_ID/" "$1" > nginx.conf &&
exec nginx -p /mnt/ -c nginx.conf -e stderr
