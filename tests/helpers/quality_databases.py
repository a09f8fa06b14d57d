"""The layouts of the official databases of image quality, each with a few pictures and all files of scores that it needs."""

import numpy as np
from image_files import random_images, save_image
from scipy.io import savemat
from workbooks import save_parts, workbook_parts

from oodbench.datasets.quality import csiq, kadid10k, live, multi, tid2013

LOADERS = {"live": live.load, "tid2013": tid2013.load, "multi": multi.load, "kadid10k": kadid10k.load, "csiq": csiq.load}
PICTURES = random_images(20, 6, 8)  # 8x6 pixels


def save(folder, *names):
    for number, name in enumerate(names):
        save_image(folder / name, PICTURES[number])


def make_tid2013(root):
    folder = root / "tid2013"
    save(
        folder,
        "reference_images/I01.BMP",
        "reference_images/i02.bmp",
        "distorted_images/i01_10_1.bmp",
        "distorted_images/I02_08_5.BMP",
    )
    names = ["i01_10_1.bmp", "I02_08_5.bmp", "i02_24_3.bmp"]
    (folder / "mos_with_names.txt").write_text("".join(f"{4 - row}.5 {name}\r\n" for row, name in enumerate(names)))
    (folder / "mos_std.txt").write_text("0.1\n0.2\n0.3\n")


def make_live(root):
    folder = root / "databaserelease2"
    save(folder, "refimgs/a.bmp", "refimgs/b.bmp", "jp2k/img2.bmp", "wn/img174.bmp", "fastfading/img1.bmp")
    copies = np.zeros((1, 982), np.uint8)
    copies[0, 0] = 1  # jp2k/img1
    names = np.array([["", *["a.bmp"] * 500, *["b.bmp"] * 481]], dtype=object)
    scores = np.arange(982.0)[None] * (1 - copies)
    savemat(folder / "dmos_realigned.mat", {"dmos_new": scores, "dmos_std": scores / 100, "orgs": copies})
    savemat(folder / "refnames_all.mat", {"refnames_all": names})
    save(folder, "jp2k/img1.bmp")


def make_multi(root):
    folder = root / "LIVEmultidistortiondatabase" / "To_Release"
    save(folder, "Part 1/blurjpeg/a.bmp", "Part 1/blurjpeg/b.bmp", "Part 1/blurjpeg/x0.bmp", "Part 1/blurjpeg/x1.bmp")
    save(folder, "Part 2/blurnoise/a.bmp", "Part 2/blurnoise/b.bmp", "Part 2/blurnoise/y0.bmp", "Part 2/blurnoise/y224.bmp")
    for part, letter in (("Part 1", "x"), ("Part 2", "y")):
        names = np.array([[f"{letter}{number}.bmp"] for number in range(225)], dtype=object)
        of = 1 + np.arange(225)[:, None] // 113
        lists = {"distimgs": names, "refimgs": np.array([["a.bmp"], ["b.bmp"]], dtype=object), "ref4dist": of.astype(np.uint8)}
        savemat(folder / part / "Imagelists.mat", lists)
        ratings = np.arange(225.0) + np.array([[-1.0], [0.0], [1.0]])
        savemat(folder / part / "Scores.mat", {"DMOSscores": np.arange(225.0)[None], "dist_diffscores": ratings})


def make_kadid10k(root):
    folder = root / "kadid10k"
    save(folder / "images", "I01.png", "I02.png", "I01_01_01.png", "I02_25_05.png")
    lines = ["dist_img,ref_img,dmos,var", "I01_01_01.png,I01.png,4.57,0.49", "I01_01_02.png,I01.png,4.33,0.81"]
    (folder / "dmos.csv").write_text("\n".join([*lines, "I02_25_05.png,I02.png,1.5,0.25"]))


def make_csiq(root, header=("image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos")):
    folder = root / "csiq"
    save(
        folder,
        "src_imgs/1600.png",
        "src_imgs/bikes.png",
        "dst_imgs/awgn/1600.AWGN.1.png",
        "dst_imgs/jpeg2000/bikes.jpeg2000.5.png",
    )
    rows = [[1600, 1, "noise", 1, 0.061, 0.062], [1600, 1, "noise", 2, 0.097, 0.206], ["bikes", 3, "jpeg 2000", 5, 0.05, 0.9]]
    save_parts(folder / "csiq.DMOS.xlsx", workbook_parts("all_by_image", [list(header), *rows, [None]], first_row=4))


MAKERS = {"live": make_live, "tid2013": make_tid2013, "multi": make_multi, "kadid10k": make_kadid10k, "csiq": make_csiq}
